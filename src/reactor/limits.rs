//! The bounds that more than one part of the reactor keeps.

use std::time::Duration;

/// How much is read from one connection in one tick, so that a fast sender keeps nobody waiting. Small where the
/// reactor is simulated, so that short messages meet the bounds.
pub(super) const TICK_BYTES: usize = if cfg!(any(test, fuzzing)) { 256 } else { 256 * 1024 };
/// How much is read of what a worker has left behind in one connection: more than the kernel keeps there (4 MiB on the
/// sender's side of a TCP connection and 6 MiB on the reader's, where nobody has raised that), and a bound for a child of
/// it that goes on writing.
pub(super) const LAST_BYTES: usize = if cfg!(any(test, fuzzing)) { 4 * 1024 } else { 16 * 1024 * 1024 };
/// One read; a pipe's or a Unix socket's buffer is not much larger.
pub(super) const READ_BYTES: usize = if cfg!(any(test, fuzzing)) { 64 } else { 64 * 1024 };
/// At most this many accepts or client timeouts per tick (1–2 ms), so other requests are not delayed.
pub(super) const MAX_PER_TICK: usize = 128;
/// At most this many answers per tick to requests that waited for too long.
pub(super) const MAX_REFUSALS_PER_TICK: usize = if cfg!(any(test, fuzzing)) { 1 } else { 128 };
/// How long a refused client may go on sending before it is closed.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// At a stop, an idle connection gets so long: a request may be on its way.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// A worker that answered busy counts as busy for so long.
pub(super) const COOLDOWN: Duration = Duration::from_millis(100);
