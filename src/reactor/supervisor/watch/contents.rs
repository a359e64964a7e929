//! What the sources of an app hold, so that only a change of content counts.

use super::changes::json_modules;
use crate::paths;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of larger files, size, time and inode have to do.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// So much is read when an app begins to be watched; of files beyond, the same has to do. It takes some 50 ms.
const MAX_SCAN_BYTES: u64 = 64 << 20;
/// Files that are remembered: beyond, each event of a file counts as a change.
const MAX_FILES: usize = 16_384;

/// The sources as they were when they were last acted on.
#[derive(Debug, Default)]
pub(super) struct Contents {
    known: HashMap<PathBuf, Known>,
    read_bytes: u64,
}

#[derive(Debug)]
struct Known {
    content: Content,
    /// What it imports that may be JSON.
    json: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Hash(u64),
    Stat { bytes: u64, modified_ns: i64, modified_s: i64, inode: u64 },
}

impl Contents {
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.known.keys()
    }

    /// Takes a file for known as it is now, or for gone. For the first look at a whole folder.
    pub(super) fn scan(&mut self, path: &Path) {
        let may_read = self.read_bytes < MAX_SCAN_BYTES;
        self.take(path, if may_read { MAX_FILE_BYTES } else { 0 });
    }

    /// The same for a file that has changed.
    pub(super) fn learn(&mut self, path: &Path) {
        self.take(path, MAX_FILE_BYTES);
    }

    fn take(&mut self, path: &Path, max_bytes: u64) {
        match read(path, max_bytes) {
            Some((known, bytes)) => {
                self.read_bytes = self.read_bytes.saturating_add(bytes);
                if self.known.len() < MAX_FILES || self.known.contains_key(path) {
                    self.known.insert(path.to_path_buf(), known);
                }
            }
            None => drop(self.known.remove(path)),
        }
    }

    /// Whether a file is another than it was, is new, or has gone.
    pub(super) fn differs(&self, path: &Path) -> bool {
        let known = self.known.get(path);
        let max_bytes = match known.map(|known| &known.content) {
            Some(Content::Stat { .. }) => 0,
            Some(Content::Hash(_)) | None => MAX_FILE_BYTES,
        };
        let now = read(path, max_bytes).map(|(now, _)| now.content);
        now.as_ref() != known.map(|known| &known.content)
    }

    /// Whether a source that is known imports that JSON.
    pub(super) fn import_json(&self, path: &Path) -> bool {
        let without_ending = path.with_extension("");
        self.known.iter().any(|(source, known)| {
            known.json.iter().any(|module| {
                if !module.starts_with('.') {
                    return path.file_name().is_some_and(|name| name == module.as_str());
                }
                let folder = source.parent().unwrap_or(Path::new("/"));
                let target = paths::absolute(&folder.join(module));
                target == path || target == without_ending
            })
        })
    }
}

/// What a file holds, and how much of it was read. `None`: there is no such file.
fn read(path: &Path, max_bytes: u64) -> Option<(Known, u64)> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    if metadata.len() > max_bytes {
        let content = Content::Stat {
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            inode: metadata.ino(),
        };
        return Some((Known { content, json: Vec::new() }, 0));
    }
    let mut text = Vec::new();
    file.take(max_bytes).read_to_end(&mut text).ok()?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    let json = if is_json { Vec::new() } else { json_modules(&text) };
    Some((Known { content: Content::Hash(hasher.finish()), json }, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_content_differs() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.js");
        let mut contents = Contents::default();
        std::fs::write(&file, "one").expect("written");
        assert!(contents.differs(&file), "new");
        contents.scan(&file);
        std::fs::write(&file, "one").expect("written");
        assert!(!contents.differs(&file), "the same bytes");
        std::fs::write(&file, "two").expect("written");
        assert!(contents.differs(&file));
        contents.learn(&file);
        std::fs::remove_file(&file).expect("removed");
        assert!(contents.differs(&file), "gone");
        contents.learn(&file);
        assert!(!contents.differs(&file));
    }

    #[test]
    fn json_counts_where_it_is_imported() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, text).expect("written");
            path
        };
        let mut contents = Contents::default();
        contents.scan(&write("index.js", "import a from './lib/a.json'\nconst b = require('./b')\n"));
        contents.scan(&write("lib/c.ts", "import x from '../d.json'; import y from '@/e.json'\n"));
        for (name, counts) in
            [("lib/a.json", true), ("a.json", false), ("b.json", true), ("d.json", true), ("x/e.json", true)]
        {
            assert_eq!(contents.import_json(&dir.path().join(name)), counts, "{name}");
        }
    }

    fn write(path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).expect("written");
    }

    fn set_modified(path: &Path, seconds: u64) {
        let file = File::options().write(true).open(path).expect("a file");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
            .expect("it is ours");
    }

    #[test]
    fn of_a_large_file_size_time_and_inode_have_to_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let (small, large) = (dir.path().join("small.js"), dir.path().join("large.js"));
        write(&small, &vec![b'x'; 1 << 20]);
        write(&large, &vec![b'x'; (1 << 20) + 1]);
        let mut contents = Contents::default();
        for file in [&small, &large] {
            set_modified(file, 1000);
            contents.scan(file);
            assert!(!contents.differs(file));
            set_modified(file, 2000);
        }
        assert!(!contents.differs(&small), "the same bytes");
        assert!(contents.differs(&large), "written at another time");
        contents.learn(&large);
        assert!(!contents.differs(&large));
        assert_eq!(contents.read_bytes, 1 << 20, "the large one was not read");
        let copy = dir.path().join("copy.js");
        std::fs::copy(&large, &copy).expect("copied");
        set_modified(&copy, 2000);
        std::fs::rename(&copy, &large).expect("renamed");
        assert!(contents.differs(&large), "another file");
    }

    #[test]
    fn the_first_look_reads_so_much_and_no_more() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.js");
        write(&file, b"one");
        for (read_bytes, is_read) in [(MAX_SCAN_BYTES - 1, true), (MAX_SCAN_BYTES, false)] {
            let mut contents = Contents { read_bytes, ..Contents::default() };
            contents.scan(&file);
            assert_eq!(matches!(contents.known[&file].content, Content::Hash(_)), is_read, "{read_bytes}");
            assert!(!contents.differs(&file));
            set_modified(&file, 3000 + u64::from(is_read));
            assert_eq!(contents.differs(&file), !is_read);
            contents.learn(&file);
            assert!(
                matches!(contents.known[&file].content, Content::Hash(_)),
                "one that has changed is read"
            );
        }
    }

    #[test]
    fn so_many_files_are_remembered_and_each_event_of_another_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let (known, new) = (dir.path().join("known.js"), dir.path().join("new.js"));
        let mut contents = Contents::default();
        for number in 0..MAX_FILES - 2 {
            let content = Content::Hash(0);
            contents.known.insert(number.to_string().into(), Known { content, json: Vec::new() });
        }
        let last = dir.path().join("last.js");
        for file in [&known, &last, &new] {
            write(file, b"one");
            contents.learn(file);
        }
        assert_eq!(contents.paths().count(), MAX_FILES);
        assert!(!contents.differs(&last) && contents.differs(&new));
        write(&known, b"two");
        assert!(contents.differs(&known));
        contents.learn(&known);
        assert!(!contents.differs(&known), "it goes on being known");
    }

    #[test]
    fn a_folder_is_no_file_and_json_imports_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut contents = Contents::default();
        contents.scan(dir.path());
        assert_eq!(contents.paths().count(), 0);
        let json = dir.path().join("a.json");
        write(&json, b"{\"import './b.json'\": \"import './b.json'\"}\nimport './b.json'");
        contents.scan(&json);
        assert!(!contents.import_json(&dir.path().join("b.json")));
    }
}
