//! The guard of a CGI worker.

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A line to the guard of a CGI worker: the process that ends what a script has left when its worker is killed. (The
/// kernel ends the script itself then, but not what that has started.)
#[derive(Debug, Clone)]
pub(crate) struct GuardLine(pub(super) std::sync::Arc<OwnedFd>);

impl GuardLine {
    /// There is no script for now.
    pub(crate) fn forget(&self) {
        // A guard that has gone guards nothing.
        let _ = nix::unistd::write(&*self.0, &0_i32.to_ne_bytes());
    }
}

/// Starts the guard: this program again, with that word. It ends when the last handle of its line is closed.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn start_guard(argument: &str) -> io::Result<GuardLine> {
    let (reader, writer) = io::pipe()?;
    // A group of its own, since that of its worker is ended with it.
    Command::new(super::own_path()).arg(argument).stdin(reader).process_group(0).spawn()?;
    Ok(GuardLine(std::sync::Arc::new(writer.into())))
}

/// What a guard does: it hears of each script's process group, and ends the last one when its line is cut.
pub(crate) fn guard() {
    // It has to outlive its worker, whoever is told to end.
    let _ = SigSet::all().thread_block();
    let mut last = [0; 4];
    let mut stdin = io::stdin().lock();
    while io::Read::read_exact(&mut stdin, &mut last).is_ok() {}
    // Nothing after `forget`; -1 and 0 would be everybody, and the guard's own group.
    if let number @ 2.. = i32::from_ne_bytes(last) {
        let _ = killpg(Pid::from_raw(number), Signal::SIGKILL);
    }
}
