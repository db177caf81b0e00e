//! On trees that the tests write: files with one inode are one namespace.

use std::fs;

use super::*;
use crate::kernel::proc::Proc;

const TITLE: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

/// A row of a connection from 10.0.0.9 to 10.0.0.5:5432.
fn row(port: u16, inode: u64) -> String {
    format!(
        "   0: 0900000A:{port:04X} 0500000A:1538 01 00000000:00000000 02:00000A7C 00000000  1000        0 {inode} 2 0\n"
    )
}

struct Tree {
    root: tempfile::TempDir,
    proc: Proc,
    processes: Processes,
    networks: Networks,
    look: HostLook,
}

impl Tree {
    fn new(enters: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("self/net")).unwrap();
        fs::write(root.path().join("self/net/tcp"), TITLE).unwrap();
        Self {
            proc: Proc::open(root.path()).unwrap(),
            processes: Processes::new(Vec::new()),
            networks: Networks::new(root.path(), enters),
            look: HostLook::default(),
            root,
        }
    }

    /// A process in the namespace of another, or in a new one with these rows.
    fn runs(&self, pid: u32, network: Result<&str, &str>) {
        let of = |name: &str| self.root.path().join(name).join("net/tcp");
        let directory = self.root.path().join(pid.to_string());
        fs::create_dir_all(directory.join("net")).unwrap();
        let stat = format!("{pid} (x y) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0 0\n");
        fs::write(directory.join("stat"), stat).unwrap();
        fs::write(directory.join("status"), "Name:\tx\nUid:\t1000\t1000\t1000\t1000\n").unwrap();
        fs::write(directory.join("cmdline"), "x\0").unwrap();
        let table = directory.join("net/tcp");
        if table.exists() {
            fs::remove_file(&table).unwrap();
        }
        match network {
            Ok(other) => fs::hard_link(of(other), table).unwrap(),
            Err(rows) => fs::write(table, format!("{TITLE}{rows}")).unwrap(),
        }
    }

    fn ends(&self, pid: u32) {
        fs::remove_dir_all(self.root.path().join(pid.to_string())).unwrap();
    }

    /// Ports of the connections to port 5432 that are seen in each other namespace.
    fn look(&mut self, second: u64) -> Vec<Vec<u16>> {
        self.look_for(&[5432], second)
    }

    fn look_for(&mut self, ports: &[u16], second: u64) -> Vec<Vec<u16>> {
        let now = Duration::from_secs(second);
        let ended = self.processes.refresh(&mut self.proc, now).unwrap();
        self.networks.find(&self.processes, &ended, now);
        self.look = HostLook::default();
        self.networks.look(&Ports::of(ports.iter().copied()), now, &mut self.look);
        let ports = |it: &Other| it.batch().sockets.iter().map(|it| it.local.port()).collect();
        let mut all: Vec<Vec<u16>> = self.networks.iter().map(ports).collect();
        all.sort();
        all
    }
}

#[test]
fn each_namespace_is_read_once_whoever_is_in_it_and_our_own_is_none() {
    let mut tree = Tree::new(false);
    tree.runs(10, Ok("self"));
    tree.runs(20, Err(&[row(40_000, 7), row(40_001, 8)].concat()));
    tree.runs(21, Ok("20"));
    tree.runs(30, Err(&row(40_000, 7)));
    assert_eq!(tree.look(1), [vec![40_000], vec![40_000, 40_001]]);
    let cookies: BTreeSet<u64> =
        tree.networks.iter().flat_map(|it| it.batch().sockets.iter().map(|it| it.cookie)).collect();
    assert_eq!(cookies.len(), 3, "the same number in two namespaces is two connections");
    assert_eq!((tree.look.surroundings.entered, tree.look.surroundings.outside), (0, 2));
    for other in tree.networks.iter() {
        let Vantage::Outside(reason) = tree.networks.vantage(other.network) else { panic!("{other:?}") };
        assert!(reason.to_string().starts_with("another network namespace: no ages"), "{reason}");
    }
    assert_eq!(tree.networks.vantage(Network::OWN), Vantage::Own);
    assert_eq!(tree.look.gaps, []);
}

#[test]
fn the_last_process_takes_its_namespace_along() {
    let mut tree = Tree::new(false);
    tree.runs(20, Err(&row(40_000, 7)));
    tree.runs(21, Ok("20"));
    assert_eq!(tree.look(1), [[40_000]]);
    tree.ends(20);
    tree.look(2);
    assert_eq!(tree.look(3), [[40_000]], "read through the other");
    tree.ends(21);
    assert_eq!(tree.look(4), [[0; 0]; 0]);
}

#[test]
fn a_process_that_moves_after_its_start_is_found_within_three_seconds() {
    let mut tree = Tree::new(false);
    tree.runs(20, Ok("self"));
    assert_eq!(tree.look(1), [[0; 0]; 0]);
    tree.runs(20, Err(&row(40_000, 7)));
    assert_eq!(tree.look(3), [[0; 0]; 0]);
    assert_eq!(tree.look(4), [[40_000]]);
    assert!(tree.networks.iter().all(|it| it.batch().is_new), "what is found there was not born just now");
    tree.look(5);
    assert!(!tree.networks.iter().any(|it| it.batch().is_new));
}

#[test]
fn a_namespace_without_a_watched_connection_is_read_every_ten_seconds() {
    let mut tree = Tree::new(false);
    tree.runs(20, Err(""));
    assert_eq!(tree.look(1), [[0; 0]]);
    fs::write(tree.root.path().join("20/net/tcp"), format!("{TITLE}{}", row(40_000, 7))).unwrap();
    assert_eq!(tree.look(10), [[0; 0]]);
    assert_eq!(tree.look(11), [[40_000]]);
    fs::write(tree.root.path().join("20/net/tcp"), format!("{TITLE}{}", row(40_001, 8))).unwrap();
    assert_eq!(tree.look(12), [[40_001]]);
}

#[test]
fn a_port_that_is_watched_from_now_on_is_looked_for_at_once_and_what_is_found_is_not_new() {
    let mut tree = Tree::new(false);
    tree.runs(20, Err(&row(40_000, 7)));
    assert_eq!(tree.look_for(&[6000], 1), [[0; 0]]);
    assert_eq!(tree.look_for(&[6000], 2), [[0; 0]]);
    assert_eq!(tree.look(3), [[40_000]]);
    assert!(tree.networks.iter().all(|it| it.batch().is_new));
    tree.look(4);
    assert!(!tree.networks.iter().any(|it| it.batch().is_new));
}

#[test]
fn a_table_that_cannot_be_understood_is_a_gap_and_what_was_seen_stays() {
    let mut tree = Tree::new(false);
    tree.runs(20, Err(&row(40_000, 7)));
    tree.look(1);
    fs::write(tree.root.path().join("20/net/tcp"), format!("{TITLE}   0: 0900")).unwrap();
    assert_eq!(tree.look(2), [[40_000]]);
    assert_eq!(tree.look.gaps.len(), 1, "{:?}", tree.look.gaps);
}

#[test]
fn where_none_may_be_entered_it_is_tried_once_and_said() {
    let mut tree = Tree::new(true);
    tree.runs(20, Err(&row(40_000, 7)));
    // The tree has no link to a namespace.
    fs::create_dir_all(tree.root.path().join("20/ns")).unwrap();
    fs::write(tree.root.path().join("20/ns/net"), "").unwrap();
    assert_eq!(tree.look(1), [[40_000]]);
    let vantage = tree.networks.iter().next().unwrap().vantage.clone();
    assert!(format!("{:?}", vantage.untold()).contains("setns into it is refused"), "{vantage:?}");
}

#[test]
fn more_namespaces_than_are_looked_at_are_told_of() {
    let mut tree = Tree::new(false);
    for pid in 100..100 + MAX_NETWORKS as u32 + 1 {
        tree.runs(pid, Err(""));
    }
    assert_eq!(tree.look(1).len(), MAX_NETWORKS);
    assert!(tree.look.gaps[0].reason.to_string().contains("more than 64 network namespaces"), "{:?}", tree.look.gaps);
    tree.ends(100);
    assert_eq!(tree.look(61).len(), MAX_NETWORKS, "there is room for the one that was left out");
    assert_eq!(tree.look.gaps, []);
}
