//! An app served by its own workers, end to end.

mod support;
mod tools;

#[path = "main_job/balancing.rs"]
mod balancing;
#[path = "main_job/deaths.rs"]
mod deaths;
#[path = "main_job/endings.rs"]
mod endings;
#[path = "main_job/logs.rs"]
mod logs;
#[path = "main_job/nothing_lost.rs"]
mod nothing_lost;
#[path = "main_job/stdout.rs"]
mod stdout;
