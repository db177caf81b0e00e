//! The files of a directory as a trace leaves them: as every process sees them, and as a power cut would.
//!
//! After the cut there is what was synced: the content of a file by its own sync, its name by the sync of its directory.
//! More may be there, never less.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::trace::{Done, What};

type Names = BTreeMap<PathBuf, Node>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    /// Index of its content: a name may come to stand for another file.
    File(usize),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Files {
    names: Names,
    contents: Vec<Vec<u8>>,
    lasting_names: Names,
    lasting_contents: Vec<Vec<u8>>,
    /// Per file: the call that last changed it.
    changed: Vec<usize>,
    calls: usize,
}

impl Files {
    /// One call more.
    pub fn apply(&mut self, done: &Done) {
        self.calls += 1;
        match &done.what {
            What::Opened { path, truncated } => {
                let file = self.file(path);
                if *truncated {
                    self.change(file, Vec::clear);
                }
            }
            What::Written { path, at, bytes } => {
                let file = self.file(path);
                self.change(file, |content| {
                    let at = usize::try_from(*at).expect("small files");
                    content.resize(content.len().max(at + bytes.len()), 0);
                    content[at..at + bytes.len()].copy_from_slice(bytes);
                });
            }
            What::Resized { path, bytes } => {
                let file = self.file(path);
                self.change(file, |content| content.resize(usize::try_from(*bytes).expect("small files"), 0));
            }
            What::Made(path) => _ = self.names.insert(path.clone(), Node::Directory),
            What::Renamed { from, to } => {
                let moved: Vec<_> = self.names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in moved {
                    let node = self.names.remove(&path).expect("listed");
                    let rest = path.strip_prefix(from).expect("filtered");
                    let target = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    self.names.insert(target, node);
                }
            }
            What::Removed(path) => _ = self.names.remove(path),
            What::Synced(path) => self.sync(path, done.after),
            What::Pushed(_) => (),
        }
    }

    fn file(&mut self, path: &Path) -> usize {
        if let Some(Node::File(file)) = self.names.get(path) {
            return *file;
        }
        self.contents.push(Vec::new());
        self.lasting_contents.push(Vec::new());
        self.changed.push(0);
        let file = self.contents.len() - 1;
        self.names.insert(path.to_owned(), Node::File(file));
        file
    }

    fn change(&mut self, file: usize, how: impl FnOnce(&mut Vec<u8>)) {
        how(&mut self.contents[file]);
        self.changed[file] = self.calls;
    }

    fn sync(&mut self, path: &Path, began: usize) {
        match self.names.get(path) {
            // What was written while it synced may have been too late: then only a later sync makes it last.
            Some(Node::File(file)) if self.changed[*file] <= began => {
                self.lasting_contents[*file] = self.contents[*file].clone();
            }
            Some(Node::File(_)) => (),
            _ => {
                let is_within = |it: &Path| it.parent() == Some(path);
                self.lasting_names.retain(|it, _| !is_within(it));
                let now = self.names.iter().filter(|(it, _)| is_within(it)).map(|(it, node)| (it.clone(), *node));
                self.lasting_names.extend(now);
            }
        }
    }

    /// Writes what a power cut leaves at least: `root` becomes `target`.
    pub fn write_lasting(&self, root: &Path, target: &Path) {
        write(&self.lasting_names, &self.lasting_contents, root, target);
    }

    /// Writes everything, as if it had all reached the disk.
    pub fn write_all(&self, root: &Path, target: &Path) {
        write(&self.names, &self.contents, root, target);
    }
}

fn write(names: &Names, contents: &[Vec<u8>], root: &Path, target: &Path) {
    std::fs::create_dir_all(target).expect("created");
    // Parents sort before what is in them; a name whose directory has none is lost with it.
    for (path, node) in names {
        let Ok(name) = path.strip_prefix(root) else { continue };
        let path = target.join(name);
        if path == target || !path.parent().is_some_and(Path::is_dir) {
            continue;
        }
        match node {
            Node::Directory => std::fs::create_dir(&path).expect("created"),
            Node::File(file) => std::fs::write(&path, &contents[*file]).expect("written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::read;
    use super::*;

    /// As strace writes it, in hexadecimal.
    fn line(call: &str) -> String {
        let hex = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        let mut out = String::new();
        for (at, piece) in call.split('\'').enumerate() {
            out += &if at % 2 == 0 { piece.to_owned() } else { hex(piece) };
        }
        format!("7 {out}\n")
    }

    fn after(calls: &[&str]) -> (Option<String>, Option<String>) {
        let room = tempfile::tempdir().expect("a directory");
        let mut files = Files::default();
        read(&calls.iter().map(|call| line(call)).collect::<String>()).iter().for_each(|call| files.apply(call));
        files.write_lasting(Path::new("/b"), &room.path().join("lasting"));
        files.write_all(Path::new("/b"), &room.path().join("all"));
        let text = |which: &str| std::fs::read_to_string(room.path().join(which).join("f")).ok();
        (text("lasting"), text("all"))
    }

    #[test]
    fn only_what_was_synced_by_content_and_by_name_lasts() {
        let create = "openat(AT_FDCWD<'/'>, \"'/b/f'\", O_RDWR|O_CREAT, 0600) = 3<'/b/f'>";
        let write = |what: &str| format!("pwrite64(3<'/b/f'>, \"'{what}'\", 2, 0) = 2");
        let (one, two, sync, name) = (write("ab"), write("cd"), "fdatasync(3<'/b/f'>) = 0", "fsync(4<'/b'>) = 0");
        let (ab, cd) = (Some("ab".to_owned()), Some("cd".to_owned()));
        assert_eq!(after(&[create, &one, sync]), (None, ab.clone()), "a name that no sync of its directory kept");
        assert_eq!(after(&[create, &one, name]), (Some(String::new()), ab.clone()), "content that was not synced");
        assert_eq!(after(&[create, &one, sync, name]), (ab.clone(), ab.clone()));
        assert_eq!(after(&[create, &one, sync, name, &two]), (ab.clone(), cd.clone()));
        let pushed = "sync_file_range(3<'/b/f'>, 0, 9, 7) = 0";
        assert_eq!(after(&[create, &one, pushed, name]).0, Some(String::new()), "which is what sled's flush does");
        let renamed = "rename(\"'/b/f'\", \"'/b/g'\") = 0";
        assert_eq!(
            after(&[create, &one, sync, name, renamed]),
            (ab, None),
            "the old name until the directory is synced"
        );
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        let (begun, ended) = ("fdatasync(3<'/b/f'> <unfinished ...>", "<... fdatasync resumed>) = 0");
        let create = "openat(AT_FDCWD<'/'>, \"'/b/f'\", O_RDWR|O_CREAT, 0600) = 3<'/b/f'>";
        let write = "pwrite64(3<'/b/f'>, \"'ab'\", 2, 0) = 2";
        let name = "fsync(4<'/b'>) = 0";
        let of = |calls: &[&str]| {
            // The sync and the write are of two threads.
            let text: String = calls.iter().map(|call| line(call)).collect();
            let text = text.replace("7 pwrite64", "8 pwrite64");
            let mut files = Files::default();
            read(&text).iter().for_each(|call| files.apply(call));
            files.lasting_contents[0].len()
        };
        assert_eq!(of(&[create, write, begun, ended, name]), 2);
        assert_eq!(of(&[create, begun, write, ended, name]), 0);
    }
}
