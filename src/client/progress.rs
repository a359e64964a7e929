//! What is said while something takes longer: one line on stderr that is drawn again, where that is a terminal; else a
//! line for each step.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// What is done by then is not spoken of.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// How often somebody who waits looks whether a second has gone by.
pub(crate) const EVERY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    is_terminal: bool,
    began: Instant,
    is_drawn: bool,
}

impl Progress {
    /// `what`: it is said until there is a step.
    pub(crate) fn new(what: &str) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Progress { what: what.to_owned(), is_terminal, began: Instant::now(), is_drawn: false }
    }

    /// Something has been reached.
    pub(crate) fn step(&mut self, what: &str) {
        what.clone_into(&mut self.what);
        match self.is_terminal {
            true => self.tick(),
            // Where it cannot be said, there is nobody to be told so.
            false => drop(writeln!(io::stderr(), "{what}")),
        }
    }

    /// Time has gone by.
    pub(crate) fn tick(&mut self) {
        let elapsed = self.began.elapsed();
        if self.is_terminal && elapsed >= SHOWN_AFTER {
            self.is_drawn = true;
            let mut stderr = io::stderr();
            let _ = write!(stderr, "\r\x1b[K{} ({} s)", self.what, elapsed.as_secs());
            let _ = stderr.flush();
        }
    }
}

impl Drop for Progress {
    /// The line is gone before anything else is said.
    fn drop(&mut self) {
        if self.is_drawn {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
