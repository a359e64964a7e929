//! `--pid-file`: which process the server is, for supervisors that follow an upgrade by it.

use crate::paths::shown;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes it; whoever reads sees the old pid or the new one, whole.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn write(path: &Path) -> Result<Self, String> {
        let pid = std::process::id();
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{pid}"));
        let write = || -> io::Result<()> {
            let mut options = std::fs::File::options();
            let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&aside)?;
            writeln!(file, "{pid}")?;
            std::fs::rename(&aside, path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&aside);
            format!("--pid-file='{}' cannot be written: {error}; another path would do", shown(&path))
        })?;
        Ok(PidFile { path: path.to_path_buf() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // By now it may be the next server's.
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        if text.trim() == std::process::id().to_string() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_pid_while_it_is_this_servers() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pid");
        std::fs::write(&path, "1\n").expect("an old one");
        let file = PidFile::write(&path).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), format!("{}\n", std::process::id()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing is left beside it");
        drop(file);
        assert!(!path.exists());

        let file = PidFile::write(&path).expect("written");
        std::fs::write(&path, "1\n").expect("the next server's");
        drop(file);
        assert!(path.exists(), "it is another's by now");
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let complaint = PidFile::write(Path::new("/nonexistent/pid")).map(drop).expect_err("no folder");
        assert_eq!(
            complaint,
            "--pid-file='/nonexistent/pid' cannot be written: No such file or directory (os error 2); another path would do"
        );
    }
}
