//! Every runtime serves an app in its own way; all of them are asked the same. What a runtime needs is installed by
//! `.ci/run`; without it the test says so and passes.

mod cgi;
mod checks;
mod commands;
mod contract;
mod examples;
mod exports;
mod fixture;
mod javascript;
mod javascript_misuse;
mod judges;
mod layouts;
mod leavers;
mod loading;
mod protocol;
mod python;
mod python_misuse;
mod python_workers;
mod ruby;
mod rust;
mod scripts;
#[path = "../support/mod.rs"]
mod support;
mod websocket;
