//! What the workers print, line by line.

use super::Supervisor;
use super::worker::Worker;
use crate::keys::WorkerKey;
use crate::observe::folds::Folds;
use crate::reactor::io::Io;
use crate::reactor::io::stream::{Transfer, attempt};
use crate::reactor::io::token::Target;
use crate::reactor::observer::Observer;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::unistd::Pid;
use slab::Slab;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A worker's line is cut here, so that a line without an end takes no more.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// Read from one worker's output in one tick: a chatty worker keeps no request waiting.
const PIPE_TICK_BYTES: usize = 64 * 1024;

/// All outputs, and what earlier failures have said already.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    pipes: Slab<Pipe>,
    pub(super) folds: Folds,
}

/// Whose words they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Worker(WorkerKey),
    /// Whoever a worker that has ended has left in its process group, which has that leader. The worker's own key may
    /// be another's by now.
    Group(Pid),
}

/// One of a worker's two outputs.
#[derive(Debug)]
pub(super) struct Pipe {
    fd: OwnedFd,
    speaker: Speaker,
    label: String,
    is_stderr: bool,
    partial: Vec<u8>,
}

impl Pipe {
    fn new(fd: OwnedFd, worker: WorkerKey, label: String, is_stderr: bool) -> Self {
        Pipe { fd, speaker: Speaker::Worker(worker), label, is_stderr, partial: Vec::new() }
    }

    /// Watches it; non-blocking on our side only, since the two ends of a pipe are two descriptions.
    fn register(&self, registry: &Registry, token: mio::Token) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        registry.register(&mut SourceFd(&self.fd.as_raw_fd()), token, Interest::READABLE)
    }
}

impl Outputs {
    fn add(&mut self, pipe: Pipe, io: &Io) {
        let key = self.pipes.insert(pipe);
        if let Err(error) = self.pipes[key].register(io.registry(), Target::Pipe(key).token()) {
            log::warn!("{}: its output cannot be watched: {error}", self.pipes[key].label);
            self.pipes.remove(key);
        }
    }

    fn of(&self, speaker: Speaker) -> Vec<usize> {
        self.pipes.iter().filter(|(_, pipe)| pipe.speaker == speaker).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
impl Outputs {
    pub(super) fn keys(&self) -> Vec<usize> {
        self.pipes.iter().map(|(key, _)| key).collect()
    }
}

impl Supervisor {
    /// Watches what a process prints on its two outputs.
    pub(super) fn add_outputs(&mut self, worker: WorkerKey, outputs: [OwnedFd; 2], io: &Io) {
        let label = self.get(worker).map(Worker::output_label).unwrap_or_default();
        for (fd, is_stderr) in outputs.into_iter().zip([false, true]) {
            self.outputs.add(Pipe::new(fd, worker, label.clone(), is_stderr), io);
        }
    }

    /// Passes a worker's output on, line by line.
    pub(crate) fn read_pipe(&mut self, key: usize, io: &mut Io, observer: &mut Observer) {
        let mut scratch = io.take_scratch();
        let mut budget = PIPE_TICK_BYTES;
        while let Some(pipe) = self.outputs.pipes.get_mut(key) {
            match attempt(|| nix::unistd::read(&pipe.fd, &mut scratch).map_err(io::Error::from)) {
                Transfer::Bytes(bytes) => {
                    self.take_output(key, &scratch[..bytes], io, observer);
                    budget = budget.saturating_sub(bytes);
                    if budget == 0 {
                        io.go_on_with(Target::Pipe(key));
                        break;
                    }
                }
                Transfer::Later => break,
                Transfer::End | Transfer::Gone | Transfer::Reset => {
                    self.close_pipe(key, io, observer);
                    break;
                }
            }
        }
        io.give_scratch_back(scratch);
    }

    /// A worker has ended: what it has printed is read, and its outputs are closed; unless somebody is left in its
    /// process group, who is told to end, and may have something to say to that.
    pub(crate) fn finish_output(&mut self, worker: WorkerKey, io: &mut Io, observer: &mut Observer) {
        let leader = self.get(worker).map(|entry| entry.process.pid);
        let left = leader.filter(|leader| self.groups.lives(*leader));
        for key in self.outputs.of(Speaker::Worker(worker)) {
            self.read_pipe(key, io, observer);
            let Some(leader) = left else {
                self.close_pipe(key, io, observer);
                continue;
            };
            self.take_rest(key, io, observer);
            if let Some(pipe) = self.outputs.pipes.get_mut(key) {
                pipe.speaker = Speaker::Group(leader);
            }
        }
    }

    /// Nobody is left in the process group of a worker that has ended, or nobody is waited for any longer.
    pub(super) fn finish_group_output(&mut self, leader: Pid, io: &mut Io, observer: &mut Observer) {
        for key in self.outputs.of(Speaker::Group(leader)) {
            self.read_pipe(key, io, observer);
            self.close_pipe(key, io, observer);
        }
    }

    fn take_output(&mut self, key: usize, bytes: &[u8], io: &Io, observer: &mut Observer) {
        let Some(pipe) = self.outputs.pipes.get_mut(key) else {
            return;
        };
        let mut partial = std::mem::take(&mut pipe.partial);
        partial.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(end) = memchr::memchr(b'\n', &partial[from..]) {
            self.take_line(key, &partial[from..from + end], io, observer);
            from += end + 1;
        }
        partial.drain(..from);
        if partial.len() >= MAX_LINE_BYTES {
            self.take_line(key, &partial, io, observer);
            partial.clear();
        }
        if let Some(pipe) = self.outputs.pipes.get_mut(key) {
            pipe.partial = partial;
        }
    }

    fn take_line(&mut self, key: usize, line: &[u8], io: &Io, observer: &mut Observer) {
        let Some(pipe) = self.outputs.pipes.get(key) else { return };
        let mut is_repeated = false;
        if let Speaker::Worker(worker) = pipe.speaker
            && let Some(entry) = self.workers.get_mut(worker.0)
        {
            if pipe.is_stderr {
                entry.remember(line);
            }
            if entry.counts.requests == 0 {
                let folds = &mut self.outputs.folds;
                is_repeated = folds.is_repeated(&mut entry.said.boot_output, line, io.now());
            }
        }
        if !is_repeated {
            observer.worker_line(line, pipe.is_stderr, &pipe.label);
        }
    }

    /// Ends a worker's output.
    fn close_pipe(&mut self, key: usize, io: &Io, observer: &mut Observer) {
        self.take_rest(key, io, observer);
        self.outputs.pipes.try_remove(key);
    }

    /// An unfinished line is a line.
    fn take_rest(&mut self, key: usize, io: &Io, observer: &mut Observer) {
        let Some(pipe) = self.outputs.pipes.get_mut(key) else {
            return;
        };
        let remaining = std::mem::take(&mut pipe.partial);
        if !remaining.is_empty() {
            self.take_line(key, &remaining, io, observer);
        }
    }
}
