//! On trees that the tests write, in the kernel's form.

use std::fs;
use std::path::Path;

use super::*;

struct Tree {
    root: tempfile::TempDir,
    proc: Proc,
    processes: Processes,
}

impl Tree {
    fn new(declared: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let proc = Proc::open(root.path()).unwrap();
        let declared =
            declared.iter().map(|(name, command)| Declared { name: (*name).into(), command: (*command).into() });
        Self { root, proc, processes: Processes::new(declared.collect()) }
    }

    fn runs(&self, pid: u32, parent: u32, start: u64, state: char, line: &str) {
        process(self.root.path(), pid, parent, start, state, line);
    }

    fn ends(&self, pid: u32) {
        fs::remove_dir_all(self.root.path().join(pid.to_string())).unwrap();
    }

    fn look(&mut self, second: u64) -> Vec<u32> {
        let ended = self.processes.refresh(&mut self.proc, Duration::from_secs(second)).unwrap();
        ended.iter().map(|instance| instance.pid).collect()
    }

    fn of(&self, pid: u32) -> String {
        let application = &self.processes.get(pid).unwrap().application;
        format!("{}/{}", application.name, application.role)
    }
}

fn process(root: &Path, pid: u32, parent: u32, start: u64, state: char, line: &str) {
    let directory = root.join(pid.to_string());
    fs::create_dir_all(&directory).unwrap();
    let stat = format!("{pid} (x y) {state} {parent} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0 0\n");
    fs::write(directory.join("stat"), stat).unwrap();
    fs::write(directory.join("status"), "Name:\tx\nUid:\t1000\t1000\t1000\t1000\n").unwrap();
    fs::write(directory.join("cmdline"), line.replace('|', "\0")).unwrap();
}

#[test]
fn a_worker_is_a_child_of_the_same_application() {
    let mut tree = Tree::new(&[("grants", "gunicorn grants:app")]);
    tree.runs(1, 0, 1, 'S', "/sbin/init");
    tree.runs(10, 1, 5, 'S', "gunicorn|grants:app");
    tree.runs(11, 10, 6, 'S', "gunicorn|grants:app");
    tree.runs(20, 1, 5, 'S', "python3|-m|uvicorn|app.main:app|--port|8000|--workers|2");
    tree.runs(
        21,
        20,
        6,
        'S',
        "/usr/bin/python3|-c|from multiprocessing.spawn import spawn_main|--multiprocessing-fork",
    );
    tree.runs(
        22,
        99,
        6,
        'S',
        "/usr/bin/python3|-c|from multiprocessing.spawn import spawn_main|--multiprocessing-fork",
    );
    assert_eq!(tree.look(1), [0; 0]);
    let seen: Vec<_> = [10, 11, 20, 21, 22].map(|pid| tree.of(pid)).into();
    let uvicorn = "uvicorn app.main:app";
    assert_eq!(seen[..2], ["grants/main", "grants/worker"]);
    assert!(tree.processes.get(10).unwrap().application.declared);
    assert_eq!(seen[2..], [format!("{uvicorn}/main"), format!("{uvicorn}/worker"), "python/main".into()]);
}

#[test]
fn a_process_that_becomes_another_program_gets_its_name() {
    let mut tree = Tree::new(&[]);
    tree.runs(10, 1, 5, 'S', "bash");
    tree.look(1);
    assert_eq!(tree.of(10), "bash/main");
    tree.runs(10, 1, 5, 'S', "/usr/sbin/nginx");
    tree.look(2);
    assert_eq!(tree.of(10), "nginx/main");
}

#[test]
fn an_end_and_a_new_life_under_the_same_pid_are_seen() {
    let mut tree = Tree::new(&[]);
    tree.runs(10, 1, 5, 'S', "old");
    tree.runs(11, 1, 5, 'S', "other");
    tree.look(1);
    tree.ends(11);
    assert_eq!(tree.look(2), [11]);
    tree.runs(10, 1, 700, 'S', "new");
    assert_eq!(tree.look(20), [10]);
    assert_eq!(tree.of(10), "new/main");
}

#[test]
fn a_zombie_is_told_with_its_age_and_keeps_its_name() {
    let mut tree = Tree::new(&[]);
    tree.runs(10, 7, 5, 'S', "worker");
    tree.look(1);
    tree.runs(10, 7, 5, 'Z', "");
    tree.look(2);
    tree.look(12);
    let zombies = tree.processes.zombies(Duration::from_secs(12));
    assert_eq!(zombies[&7], [(10, Duration::from_secs(10))]);
    assert_eq!(tree.of(10), "worker/main");
    assert_eq!(tree.processes.candidates().count(), 0);
    tree.ends(10);
    tree.look(13);
    assert!(tree.processes.zombies(Duration::from_secs(13)).is_empty());
}

#[test]
fn a_kernel_thread_is_no_application() {
    let mut tree = Tree::new(&[]);
    tree.runs(2, 0, 0, 'S', "");
    let stat = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 4 0 0 0\n";
    fs::write(tree.root.path().join("2/stat"), stat).unwrap();
    tree.look(1);
    assert!(tree.processes.get(2).unwrap().is_kernel_thread);
    assert_eq!(tree.processes.candidates().count(), 0);
}

#[test]
fn a_real_zombie_of_ours_is_seen_until_we_wait() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let mut proc = Proc::open("/proc").unwrap();
    let mut processes = Processes::new(Vec::new());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let ours = std::process::id();
    let mut seen = |processes: &mut Processes| {
        processes.refresh(&mut proc, Duration::from_secs(1)).unwrap();
        let zombies = processes.zombies(Duration::from_secs(3));
        zombies.get(&ours).and_then(|zombies| zombies.iter().find(|(pid, _)| *pid == child.id()).copied())
    };
    while seen(&mut processes) != Some((child.id(), Duration::from_secs(2))) {
        assert!(std::time::Instant::now() < deadline);
    }
    child.wait().unwrap();
    let mut proc = Proc::open("/proc").unwrap();
    processes.refresh(&mut proc, Duration::from_secs(4)).unwrap();
    assert!(processes.get(child.id()).is_none());
}
