//! Against the kernel that runs the tests.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use super::*;

#[test]
fn a_child_is_read_whole() {
    let mut proc = Proc::open("/proc").unwrap();
    let mut child = Command::new("sleep").arg("600").env_clear().env("DB_POOL_SIZE", "7").spawn().unwrap();
    let pid = child.id();
    let stat = proc.stat(pid).unwrap();
    assert_eq!((stat.parent, stat.threads, stat.is_kernel_thread), (std::process::id(), 1, false));
    let age = proc.uptime().unwrap().as_secs_f64() - stat.start as f64 / proc.constants().ticks_per_second as f64;
    assert!((-0.1..60.0).contains(&age), "{age}");
    assert_eq!(proc.uid(pid).unwrap(), rustix::process::getuid().as_raw());
    assert!(proc.descriptor_limit(pid).unwrap().is_none_or(|limit| limit > 0));
    // Between fork and exec it is still the test: wait for its own name.
    let deadline = Instant::now() + Duration::from_secs(10);
    while strings::arguments(&proc.command_line(pid).unwrap()) != ["sleep", "600"] {
        assert!(Instant::now() < deadline);
    }
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(proc.descriptor_count(pid).unwrap(), listed as u64);
    assert_eq!(strings::value_of(&proc.environment(pid).unwrap(), "DB_POOL_SIZE"), Some("7"));
    assert!(proc.pss(pid).unwrap() > 0);
    let mut pids = Vec::new();
    proc.pids(&mut pids).unwrap();
    assert!(pids.contains(&pid) && pids.contains(&std::process::id()));
    assert!(proc.last_pid().unwrap() > 0);

    child.kill().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !proc.stat(pid).unwrap().is_zombie() {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(stat::end_in_words(proc.stat(pid).unwrap().exit_code), "killed by signal 9");
    child.wait().unwrap();
    assert!(matches!(proc.stat(pid), Err(KernelError::Gone)));
}

#[test]
fn our_own_sockets_are_found_by_descriptor_and_twice_when_copied() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let copy = listener.try_clone().unwrap();
    let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
    let mut found = Vec::new();
    Proc::open("/proc").unwrap().sockets(std::process::id(), &mut found).unwrap();
    let mut fds: Vec<_> = found.iter().filter(|one| one.inode == inode).map(|one| one.fd).collect();
    fds.sort_unstable();
    let mut expected = [listener.as_raw_fd() as u32, copy.as_raw_fd() as u32];
    expected.sort_unstable();
    assert_eq!(fds, expected);
}

#[test]
fn a_captured_tree_is_read_like_the_kernels() {
    let mut proc = Proc::open(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/proc/odd_names")).unwrap();
    let mut pids = Vec::new();
    proc.pids(&mut pids).unwrap();
    pids.sort_unstable();
    assert_eq!(pids, [42, 43]);
    assert_eq!(proc.stat(42).unwrap().parent, 7);
    assert!(proc.stat(43).unwrap().is_zombie());
    assert_eq!(proc.uid(42).unwrap(), 1000);
    assert_eq!(proc.descriptor_limit(42).unwrap(), Some(1024));
    assert_eq!(proc.pss(42).unwrap(), 1_048_576);
    assert!(matches!(proc.stat(44), Err(KernelError::Gone)));
    assert!(matches!(proc.uid(43), Err(KernelError::Malformed(_))));
}

#[test]
fn a_long_environment_is_cut_after_a_whole_string() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("1")).unwrap();
    let mut long = b"A=1\0".to_vec();
    long.extend(vec![b'x'; STRINGS * 2]);
    std::fs::write(root.path().join("1/environ"), long).unwrap();
    let read = Proc::open(root.path()).unwrap().environment(1).unwrap();
    assert_eq!(&read[..], b"A=1\0");
}
