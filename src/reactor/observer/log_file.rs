//! `--log-file`: how it is opened, and what is said where it cannot be.

use super::stdio::Output;
use crate::paths::shown;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    pub(super) output: Output,
}

impl LogFile {
    /// # Errors
    /// One line: the file, what is wrong with it, what would do.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        Ok(LogFile { output: Output::to(open(path)?), path: path.to_path_buf() })
    }

    /// Opens the path anew: whoever rotates logs has moved the file away.
    ///
    /// # Errors
    /// As at the start; the file that is open stays open.
    pub(super) fn reopen(&mut self) -> Result<(), String> {
        self.output.go_on_in(open(&self.path)?);
        Ok(())
    }

    /// As messages name it.
    pub(super) fn name(&self) -> String {
        format!("'{}'", shown(&self.path))
    }
}

fn open(path: &Path) -> Result<File, String> {
    // Appending, so that a file that is copied and truncated has no hole. A pipe without a reader would be waited for.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().create(true).append(true).custom_flags(flags).open(path);
    file.map_err(|error| {
        format!("--log-file: '{}' cannot be opened: {}", shown(path), complaint(path, &error))
    })
}

fn complaint(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().unwrap_or(path);
    let user = nix::unistd::geteuid();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            format!(
                "there is no folder '{0}'; mkdir -p {1} would do",
                shown(folder),
                crate::paths::quoted(folder)
            )
        }
        Some(libc::EACCES) => {
            format!("user {user} may not write there; a file or a folder of that user would do")
        }
        Some(libc::EISDIR) => format!("it is a folder; a file in it would do, as {}/access.log", shown(path)),
        Some(libc::ENOTDIR) => format!("'{}' is no folder", shown(folder)),
        Some(libc::ENXIO) => "it is a pipe that nobody reads, or a socket; a file would do".to_owned(),
        Some(libc::ENOSPC | libc::EDQUOT) => "the disk is full".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        LogFile::open(path).map(drop).expect_err("it cannot be opened")
    }

    #[test]
    fn lines_are_appended_and_a_file_that_was_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, old) = (dir.path().join("log"), dir.path().join("old"));
        std::fs::write(&path, "before\n").expect("written");
        let mut file = LogFile::open(&path).expect("opened");
        assert_eq!(file.name(), format!("'{}'", path.display()));
        file.output.push(b"one\n");
        file.output.flush();
        std::fs::rename(&path, &old).expect("moved");
        file.reopen().expect("opened");
        file.output.push(b"two\n");
        file.output.flush();
        let text = |path| std::fs::read_to_string(path).expect("it is there");
        assert_eq!((text(&old).as_str(), text(&path).as_str()), ("before\none\n", "two\n"));
    }

    #[test]
    fn what_cannot_be_opened_is_told_with_what_would_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let shown = dir.path().display();
        let path = dir.path().join("none/log");
        let expected = format!("there is no folder '{shown}/none'; mkdir -p {shown}/none would do");
        assert!(refusal(&path).ends_with(&expected), "{}", refusal(&path));
        assert!(refusal(&path).starts_with(&format!("--log-file: '{shown}/none/log' cannot be opened: ")));
        let expected = format!("it is a folder; a file in it would do, as {shown}/access.log");
        assert!(refusal(dir.path()).ends_with(&expected), "{}", refusal(dir.path()));
        std::fs::write(dir.path().join("file"), "").expect("written");
        let expected = format!("'{shown}/file' is no folder");
        assert!(refusal(&dir.path().join("file/log")).ends_with(&expected));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(refusal(&pipe).ends_with("it is a pipe that nobody reads, or a socket; a file would do"));
        let complaint = |code| complaint(&path, &io::Error::from_raw_os_error(code));
        let user = nix::unistd::geteuid();
        assert_eq!(
            complaint(libc::EACCES),
            format!("user {user} may not write there; a file or a folder of that user would do")
        );
        assert_eq!(
            (complaint(libc::ENOSPC).as_str(), complaint(libc::EDQUOT).as_str()),
            ("the disk is full", "the disk is full")
        );
        assert!(complaint(libc::EIO).contains("error"), "the kernel's own words");
    }

    #[test]
    fn a_file_is_opened_without_waiting_and_for_this_process_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = open(&dir.path().join("log")).expect("opened");
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL).expect("its flags"));
        assert!(flags.contains(OFlag::O_NONBLOCK | OFlag::O_APPEND));
        assert_eq!(fcntl(&file, FcntlArg::F_GETFD).expect("its flags"), libc::FD_CLOEXEC);
    }
}
