use std::net::SocketAddr;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::super::pools::tests::socket;
use super::*;
use crate::kernel::socket::TcpState;

/// A network namespace: its sockets, and the count that the kernel keeps of them.
struct World {
    root: TempDir,
    /// Each with whether it is wanted.
    sockets: Vec<(u64, bool)>,
    next: u64,
    births: Births,
}

const WANTED: &str = "10.0.0.9:5432";

fn ports() -> Ports {
    Ports::of([5432])
}

fn destroyed(cookie: u64) -> Destroyed {
    let end = SocketAddr::from(([10, 0, 0, 1], 1));
    Destroyed { cookie, local: end, remote: end }
}

impl World {
    fn with(wanted: usize, others: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("net")).unwrap();
        let mut world = Self { root, sockets: Vec::new(), next: 1, births: Births::default() };
        (0..wanted + others).for_each(|at| world.open(at < wanted));
        world
    }

    fn open(&mut self, is_wanted: bool) {
        self.sockets.push((self.next, is_wanted));
        self.next += 1;
        self.count();
    }

    /// Gives the end that the kernel tells of.
    fn close(&mut self, at: usize) -> Destroyed {
        let (cookie, _) = self.sockets.remove(at);
        self.count();
        destroyed(cookie)
    }

    fn count(&self) {
        let text = format!("sockets: used 7\nTCP: inuse {} orphan 0 tw 3\n", self.sockets.len());
        std::fs::write(self.root.path().join("net/sockstat"), text).unwrap();
    }

    fn wanted(&self) -> Vec<u64> {
        self.sockets.iter().filter(|(_, is_wanted)| *is_wanted).map(|(cookie, _)| *cookie).collect()
    }

    /// What a look sees, and whether it was without a dump.
    fn look(&mut self) -> (Vec<u64>, bool) {
        if let Some(known) = self.births.none_since(&ports(), &Ports::of([])) {
            return (known.iter().map(|it| it.cookie).collect(), true);
        }
        if let Some(before) = self.births.count(self.root.path()) {
            let cookies = self.sockets.iter().map(|(cookie, _)| *cookie).collect();
            let known = self.wanted().into_iter().map(|it| socket(it, WANTED, TcpState::Established)).collect();
            self.births.shown(before, cookies, known, (&ports(), &Ports::of([])), Duration::from_millis(2));
        }
        (self.wanted(), false)
    }

    fn is_quiet(&mut self) -> bool {
        let (seen, is_quiet) = self.look();
        assert_eq!(seen, self.wanted());
        is_quiet
    }
}

#[test]
fn between_two_dumps_are_looks_without_one_while_none_is_born() {
    let mut world = World::with(3, 2);
    let looks: Vec<bool> = (0..8).map(|_| world.is_quiet()).collect();
    assert_eq!(looks, [false, true, true, true, false, true, true, true]);
}

#[test]
fn a_birth_is_seen_at_once_and_an_end_asks_for_no_dump() {
    let mut world = World::with(3, 2);
    assert!(!world.is_quiet());
    for at in [4, 1] {
        let end = world.close(at);
        world.births.ended(&[end]);
        assert!(world.is_quiet(), "an end that was told of");
    }
    world.open(true);
    assert!(!world.is_quiet());
    assert!(world.is_quiet());
    // Of one that was never shown, no birth is hidden.
    world.births.ended(&[destroyed(999)]);
    assert!(world.is_quiet());
}

#[test]
fn one_that_takes_the_place_of_another_is_seen_with_the_word_of_its_end() {
    let mut world = World::with(3, 2);
    assert!(!world.is_quiet());
    let end = world.close(4);
    world.open(true);
    assert!(world.look().1, "the count is the same, and of the end nothing was heard");
    world.births.ended(&[end]);
    assert!(!world.is_quiet());
    // Without a word of it, a dump comes all the same.
    assert!(world.is_quiet());
    world.close(0);
    world.open(true);
    let looks: Vec<bool> = (0..3).map(|_| world.look().1).collect();
    assert_eq!(looks, [true, true, false]);
}

#[test]
fn other_ports_lost_ends_and_a_refused_count_ask_for_a_dump() {
    let mut world = World::with(3, 2);
    assert!(!world.is_quiet());
    assert!(world.births.none_since(&Ports::of([5432, 6379]), &Ports::of([])).is_none());
    assert!(!world.is_quiet());
    assert!(world.births.none_since(&ports(), &Ports::of([8000])).is_none());
    assert!(!world.is_quiet());
    world.births.forget();
    assert!(!world.is_quiet());
    std::fs::write(world.root.path().join("net/sockstat"), "TCP: none\n").unwrap();
    assert!((0..9).all(|_| !world.is_quiet()));
    world.count();
    assert!(!world.is_quiet());
    assert!(world.is_quiet());
}

#[test]
fn where_births_are_common_or_look_ups_dear_they_rest_and_try_again() {
    let mut world = World::with(3, 2);
    for _ in 0..=IN_VAIN {
        assert!(!world.is_quiet());
        world.open(false);
    }
    let quiet = |world: &mut World| (0..).find(|_| world.is_quiet()).unwrap();
    assert_eq!(quiet(&mut world), usize::from(REST) - 1, "the last of those looks was the first one at rest");
    world.births.took(Duration::from_millis(1));
    assert!(world.is_quiet(), "cheaper than a dump");
    world.births.took(Duration::from_millis(3));
    assert_eq!(quiet(&mut world), usize::from(REST));
}

#[test]
fn of_very_many_nothing_is_remembered() {
    let mut world = World::with(3, MOST as usize);
    assert!((0..9).all(|_| !world.is_quiet()));
}

#[derive(Debug, Clone)]
enum Step {
    Open(bool),
    Close(prop::sample::Index),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => any::<bool>().prop_map(Step::Open),
        1 => any::<prop::sample::Index>().prop_map(Step::Close),
        2 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// With every end told, no look misses one or shows one that is gone.
    #[test]
    fn every_look_shows_all_that_are_there(steps in steps()) {
        let mut world = World::with(3, 3);
        for step in steps {
            match step {
                Step::Open(is_wanted) => world.open(is_wanted),
                Step::Close(at) if !world.sockets.is_empty() => {
                    let end = world.close(at.index(world.sockets.len()));
                    world.births.ended(&[end]);
                }
                Step::Close(_) => (),
                Step::Look => {
                    world.is_quiet();
                }
            }
        }
    }
}
