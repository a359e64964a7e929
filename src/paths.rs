//! Paths as people type them and as messages show them.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// A Unix socket's path has room for so many bytes.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The path as typed, made absolute without resolving symlinks. A relative one begins at the folder that the shell
/// names, so that of `.` inside a `current` link the link is kept, as long as that leads to the same file as the
/// kernel's own folder.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    if path.is_absolute() {
        return clean(path);
    }
    let file = identity(path);
    let from_shell = current_dir().map(|dir| clean(&dir.join(path)));
    let from_kernel = std::env::current_dir().map(|dir| clean(&dir.join(path)));
    match (from_shell, from_kernel) {
        (Some(shell), Ok(kernel)) => {
            // `..` behind a symlink is one folder for the shell and another for the kernel.
            let is_same = file.is_none() || identity(&shell) == file;
            if is_same { shell } else { kernel }
        }
        (Some(shell), Err(_)) => shell,
        (None, Ok(kernel)) => kernel,
        (None, Err(_)) => path.to_path_buf(),
    }
}

/// The working folder: `$PWD` where it names it (its symlinks are kept), else as the kernel tells.
pub(crate) fn current_dir() -> Option<PathBuf> {
    let shell = std::env::var_os("PWD").map(PathBuf::from);
    let is_whole = |path: &PathBuf| path.is_absolute() && *path == clean(path);
    let here = identity(Path::new("."));
    match shell.filter(is_whole).filter(|path| here.is_some() && identity(path) == here) {
        Some(shell) => Some(shell),
        None => std::env::current_dir().ok(),
    }
}

/// Which file a path leads to: device and inode.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Without `.` and `..`, by the letters alone.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// A path, or another word from outside, as it may stand in a line: line breaks and other control characters are
/// escaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a>(&'a OsStr);

/// See [`Shown`].
pub(crate) fn shown<T: AsRef<OsStr> + ?Sized>(argument: &T) -> Shown<'_> {
    Shown(argument.as_ref())
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Unicode's own line and paragraph separators.
        const SEPARATORS: [char; 2] = ['\u{2028}', '\u{2029}'];
        for letter in self.0.to_string_lossy().chars() {
            if letter.is_control() || SEPARATORS.contains(&letter) {
                write!(f, "{}", letter.escape_default())?;
            } else {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// A path or another word as a shell takes it.
pub(crate) fn quoted<T: AsRef<OsStr> + ?Sized>(argument: &T) -> String {
    let text = argument.as_ref().to_string_lossy();
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "_./-,:=@%+".contains(letter);
    if !text.is_empty() && text.chars().all(is_bare) {
        text.into_owned()
    } else if text.chars().any(char::is_control) {
        let escaped = text.chars().map(|letter| match letter {
            '\'' | '\\' => format!("\\{letter}"),
            letter if letter.is_control() => {
                let mut buffer = [0; 4];
                let bytes = letter.encode_utf8(&mut buffer).bytes();
                bytes.map(|byte| format!("\\x{byte:02x}")).collect()
            }
            letter => letter.to_string(),
        });
        format!("$'{}'", escaped.collect::<String>())
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_are_only_cleaned() {
        assert_eq!(absolute(Path::new("/a/b/../c/.")), Path::new("/a/c"));
        assert_eq!(absolute(Path::new("/..")), Path::new("/"));
    }

    #[test]
    fn a_quoted_path_is_one_word_of_a_shell() {
        for path in ["/srv/shop", "/srv/my shop", "it's", "a\nb", "é'\\\t1\u{85}", "$HOME", ""] {
            let command = format!("printf %s {}", quoted(path));
            let output = std::process::Command::new("bash").args(["-c", &command]).output();
            let Ok(output) = output else { return };
            assert_eq!(String::from_utf8_lossy(&output.stdout), path, "{command}");
        }
    }

    #[test]
    fn a_shown_path_is_one_line() {
        assert_eq!(shown("/srv/a\nb\r\u{2028}\t\u{7f}").to_string(), r"/srv/a\nb\r\u{2028}\t\u{7f}");
        assert_eq!(shown("/srv/ä b").to_string(), "/srv/ä b");
    }
}
