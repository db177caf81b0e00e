//! The memory limit that a process lives under, from the cgroup tree (v2, and v1's memory controller).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::KernelError;

/// Levels of a tree that are walked up.
const MAX_DEPTH: usize = 64;

/// Where the memory controller's tree is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    version: Version,
    mount: PathBuf,
    /// Which cgroup the mount point shows: `/`, or in a container often its own.
    root: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Hierarchy {
    /// Finds it in `/proc/self/mountinfo`: v1's memory controller where it is mounted (then v2 has none), else v2.
    pub fn find(mountinfo: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(mountinfo);
        let mut unified = None;
        for line in text.lines() {
            // 30 23 0:26 <root> <mount point> <options> <optional fields> - <type> <source> <super options>
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (left.next(), left.next()) else { continue };
            let found = |version| Self { version, mount: PathBuf::from(unescaped(mount)), root: unescaped(root) };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") if unified.is_none() => unified = Some(found(Version::Two)),
                Some("cgroup") if right.nth(1).is_some_and(|options| options.split(',').any(|one| one == "memory")) => {
                    return Some(found(Version::One));
                }
                _ => (),
            }
        }
        unified
    }

    /// The directory of a process's cgroup, from `/proc/<pid>/cgroup`; `None` when it lies outside of the mount.
    pub fn directory(&self, cgroup: &[u8]) -> Option<PathBuf> {
        let text = std::str::from_utf8(cgroup).ok()?;
        let path = text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let ours = match self.version {
                Version::One => controllers.split(',').any(|one| one == "memory"),
                Version::Two => number == "0" && controllers.is_empty(),
            };
            ours.then_some(path)
        })?;
        let beneath = if self.root == "/" { path } else { path.strip_prefix(self.root.as_str())? };
        // `/pod-12` does not lie beneath `/pod-1`.
        if !beneath.is_empty() && !beneath.starts_with('/') {
            return None;
        }
        let beneath = beneath.trim_start_matches('/');
        // `/../x` is a cgroup outside of our cgroup namespace.
        if beneath.split('/').any(|part| part == "..") {
            return None;
        }
        Some(self.mount.join(beneath))
    }

    /// The part of `directory` beneath the mount.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn beneath<'a>(&self, directory: &'a Path) -> Option<&'a Path> {
        directory.strip_prefix(&self.mount).ok()
    }

    /// The nearest cgroup with a memory limit, from `directory` upwards; `None` when nothing limits it.
    ///
    /// # Errors
    /// When a limit cannot be read for another reason than that the controller is off there.
    pub fn nearest_limit(&self, directory: &Path) -> Result<Option<Limited>, KernelError> {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        for level in directory.ancestors().take(MAX_DEPTH).take_while(|level| level.starts_with(&self.mount)) {
            match read(&level.join(file)) {
                Ok(text) => {
                    if let Some(bytes) = parse_limit(&text) {
                        return Ok(Some(Limited { version: self.version, directory: level.to_owned(), bytes }));
                    }
                }
                // v2's root has no limit, and a controller may be switched off for a subtree.
                Err(KernelError::Gone) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// A cgroup with a memory limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    version: Version,
    directory: PathBuf,
    /// The limit.
    pub bytes: u64,
}

/// What a limited cgroup uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, without the page cache that can be dropped at once.
    pub bytes: u64,
    /// How often the limit was hit since the cgroup was made.
    pub max_events: u64,
    /// Processes of it that the kernel killed for memory.
    pub oom_kills: Option<u64>,
}

impl Limited {
    /// What it uses now: three small files.
    ///
    /// # Errors
    /// `Gone` when the cgroup was removed; `Malformed` when a file is not what the kernel documents.
    pub fn usage(&self) -> Result<Usage, KernelError> {
        let file = |name: &str| read(&self.directory.join(name));
        let number = |name: &'static str| file(name)?.trim().parse::<u64>().map_err(|_| KernelError::Malformed(name));
        let (used, inactive, max_events, oom_kills) = match self.version {
            Version::One => (
                number("memory.usage_in_bytes")?,
                keyed(&file("memory.stat")?, "total_inactive_file"),
                number("memory.failcnt")?,
                file("memory.oom_control").ok().and_then(|text| keyed(&text, "oom_kill")),
            ),
            Version::Two => {
                let events = file("memory.events")?;
                let max = keyed(&events, "max").ok_or(KernelError::Malformed("memory.events"))?;
                let inactive = keyed(&file("memory.stat")?, "inactive_file");
                (number("memory.current")?, inactive, max, keyed(&events, "oom_kill"))
            }
        };
        Ok(Usage { bytes: used.saturating_sub(inactive.unwrap_or(0)), max_events, oom_kills })
    }
}

/// The mount of a `/proc`'s own machine, read once: [`Hierarchy::find`] over its `self/mountinfo`.
///
/// # Errors
/// When the file cannot be read; `Absent` when no memory controller is mounted.
pub fn hierarchy(proc_root: &Path) -> Result<Hierarchy, KernelError> {
    Hierarchy::find(read(&proc_root.join("self/mountinfo"))?.as_bytes()).ok_or(KernelError::Absent)
}

/// Usage of several processes' cgroups in one look: each cgroup is read once.
#[derive(Debug, Default)]
pub struct Usages {
    read: HashMap<PathBuf, Option<Usage>>,
}

impl Usages {
    /// The usage of `limited`; `None` when it cannot be read.
    pub fn of(&mut self, limited: &Limited) -> Option<Usage> {
        if let Some(known) = self.read.get(&limited.directory) {
            return *known;
        }
        let usage = limited.usage().ok();
        self.read.insert(limited.directory.clone(), usage);
        usage
    }
}

fn read(path: &Path) -> Result<String, KernelError> {
    let mut text = String::new();
    File::open(path)?.take(256 * 1024).read_to_string(&mut text)?;
    Ok(text)
}

/// `max`, or bytes; v1 says "no limit" with the largest multiple of a page.
pub(super) fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

/// The number behind `key` in a file of `key number` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
pub(super) fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tree as a container with v2 shows it: the pod is limited, the container in it is not.
    fn v2() -> (tempfile::TempDir, Hierarchy) {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("kubepods/pod 1");
        std::fs::create_dir_all(pod.join("app/worker")).unwrap();
        std::fs::write(pod.join("memory.max"), "1048576\n").unwrap();
        std::fs::write(pod.join("app/memory.max"), "max\n").unwrap();
        std::fs::write(pod.join("memory.current"), "900000\n").unwrap();
        std::fs::write(pod.join("memory.stat"), "anon 5\ninactive_file 100000\nactive_file 7\n").unwrap();
        std::fs::write(pod.join("memory.events"), "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 9\n")
            .unwrap();
        let line = format!("30 23 0:26 / {} rw,nosuid - cgroup2 cgroup2 rw\n", root.path().display());
        let hierarchy = Hierarchy::find(line.as_bytes()).unwrap();
        (root, hierarchy)
    }

    #[test]
    fn the_nearest_limit_above_counts_without_the_droppable_cache() {
        let (_root, hierarchy) = v2();
        let directory = hierarchy.directory(b"0::/kubepods/pod 1/app/worker\n").unwrap();
        let limited = hierarchy.nearest_limit(&directory).unwrap().unwrap();
        assert_eq!(limited.bytes, 1_048_576);
        let expected = Usage { bytes: 800_000, max_events: 12, oom_kills: Some(2) };
        assert_eq!(limited.usage().unwrap(), expected);
        assert_eq!(Usages::default().of(&limited), Some(expected));
    }

    #[test]
    fn no_limit_anywhere_is_none() {
        let (root, hierarchy) = v2();
        assert_eq!(hierarchy.nearest_limit(&hierarchy.directory(b"0::/").unwrap()).unwrap(), None);
        assert_eq!(hierarchy.nearest_limit(&root.path().join("not/there")).unwrap(), None);
    }

    #[test]
    fn version_one_is_read_where_it_holds_the_memory_controller() {
        let root = tempfile::tempdir().unwrap();
        let job = root.path().join("jobs/7");
        std::fs::create_dir_all(&job).unwrap();
        std::fs::write(root.path().join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        std::fs::write(job.join("memory.limit_in_bytes"), "4096000\n").unwrap();
        std::fs::write(job.join("memory.usage_in_bytes"), "4000\n").unwrap();
        std::fs::write(job.join("memory.stat"), "inactive_file 1\ntotal_inactive_file 5000\n").unwrap();
        std::fs::write(job.join("memory.failcnt"), "3\n").unwrap();
        std::fs::write(job.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
        let mounts = format!(
            "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             32 23 0:28 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 23 0:29 / {} rw shared:9 - cgroup cgroup rw,memory\n",
            root.path().display()
        );
        let hierarchy = Hierarchy::find(mounts.as_bytes()).unwrap();
        let directory = hierarchy.directory(b"5:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/y\n").unwrap();
        let limited = hierarchy.nearest_limit(&directory).unwrap().unwrap();
        assert_eq!(limited.usage().unwrap(), Usage { bytes: 0, max_events: 3, oom_kills: Some(1) });
        assert_eq!(hierarchy.nearest_limit(root.path()).unwrap(), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_tree_shows_that_part_only() {
        let mounts = b"1 2 0:1 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let hierarchy = Hierarchy::find(mounts).unwrap();
        assert_eq!(hierarchy.directory(b"0::/docker/abc/app"), Some("/sys/fs/cgroup/app".into()));
        assert_eq!(hierarchy.directory(b"0::/system.slice"), None);
        assert_eq!(hierarchy.directory(b"0::/docker/abcdef/app"), None, "a namesake is not ours");
        assert_eq!(hierarchy.directory(b"0::/docker/abc/../def"), None);
    }

    #[test]
    fn this_machine_is_read_or_says_that_it_has_none() {
        match hierarchy("/proc".as_ref()) {
            Ok(hierarchy) => {
                let own = std::fs::read("/proc/self/cgroup").unwrap();
                if let Some(directory) = hierarchy.directory(&own)
                    && let Some(limited) = hierarchy.nearest_limit(&directory).unwrap()
                {
                    assert!(limited.usage().unwrap().bytes <= limited.bytes * 2);
                }
            }
            Err(error) => assert!(matches!(error, KernelError::Absent), "{error:?}"),
        }
    }

    #[test]
    fn escapes_of_mountinfo_are_undone() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/a\9"), r"/a\9");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[a-z0-9:/ \\\\.,\n-]{0,300}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let text = String::from_utf8_lossy(bytes);
                let _ = (parse_limit(&text), keyed(&text, "max"), unescaped(&text));
                let hierarchy = Hierarchy::find(bytes)
                    .unwrap_or(Hierarchy { version: Version::Two, mount: "/m".into(), root: "/r".into() });
                let _ = hierarchy.directory(bytes);
            }
        }
    }
}
