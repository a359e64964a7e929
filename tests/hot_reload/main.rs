//! `--hot-reload`: a changed entry is swapped in, a changed import has the workers replaced, and nothing else counts.

#[path = "../runtimes/fixture.rs"]
mod fixture;
mod language;
mod load;
mod renewal;
mod replaced;
#[path = "../support/mod.rs"]
mod support;
mod swapped;
