//! Buffers that start again, are copied and are put back to an older state: no record of any is answered as settled unless
//! it is stored.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use tickbird_shared::StartWord;
use tickbird_shared::start::{EarlierStart, MAX_EARLIER};

use super::tests::{batch, mark};
use super::*;
use crate::store::LaneStart;

fn start(number: u64, opened: u64, before: &[(u64, u64)]) -> Start {
    let before = before.iter().map(|(word, opened)| EarlierStart { word: StartWord::new(*word), opened: *opened });
    Start { number, word: StartWord::new(number), opened, before: before.collect() }
}

/// A lane that was received up to 7 from start 3, whose word is 3.
fn known() -> LaneRow {
    LaneRow { start: Some(LaneStart { number: 3, word: StartWord::new(3) }), ..mark(5, 7, 1) }
}

fn of(start: Start, first: u64, count: u64) -> Incoming {
    Incoming { start: Some(start), ..batch(first, count, 1) }
}

fn admitted(start: Start, first: u64, count: u64) -> Admission {
    admit(Some(&known()), &of(start, first, count))
}

const BEHIND: Admission = Admission::OtherStart(Elsewhere::Behind);
const SUPERSEDED: Admission = Admission::OtherStart(Elsewhere::Superseded);

#[test]
fn the_start_that_a_lane_goes_by_goes_on() {
    let again = || start(3, 2, &[(2, 0)]);
    assert_eq!(admitted(again(), 8, 2), Admission::Take { after: 7, through: 9 });
    assert_eq!(admitted(again(), 5, 3), Admission::Repeat { through: 7 });
    assert_eq!(admitted(again(), 9, 1), Admission::Gap { through: 7 });
    assert_eq!(admitted(again(), 9, 0), Admission::Repeat { through: 7 }, "a heartbeat");
}

#[test]
fn a_later_start_is_taken_when_it_holds_all_that_was_received() {
    assert_eq!(admitted(start(4, 7, &[(3, 2)]), 8, 1), Admission::Take { after: 7, through: 8 });
    assert_eq!(admitted(start(4, 9, &[(3, 2)]), 6, 2), Admission::Repeat { through: 7 }, "its answer was lost");
    let later = start(6, 20, &[(5, 9), (4, 7), (3, 2)]);
    assert_eq!(admitted(later, 8, 13), Admission::Take { after: 7, through: 20 }, "two starts were never heard");
}

#[test]
fn an_older_copy_is_not_taken_not_even_its_heartbeat() {
    for count in [0, 1, 9] {
        assert_eq!(admitted(start(4, 6, &[(3, 2)]), 7, count), BEHIND);
        assert_eq!(admitted(start(5, 90, &[(4, 6), (3, 2)]), 7, count), BEHIND, "it had more, later and of its own");
        assert_eq!(admitted(start(4, 90, &[(2, 2)]), 7, count), BEHIND, "a copy of what was before");
    }
}

#[test]
fn a_start_whose_place_was_taken_is_not_taken_any_more() {
    let of_its_number = Start { word: StartWord::new(99), ..start(3, 90, &[(2, 0)]) };
    for count in [0, 1, 9] {
        assert_eq!(admitted(start(2, 90, &[(1, 0)]), 8, count), SUPERSEDED);
        assert_eq!(admitted(of_its_number.clone(), 8, count), SUPERSEDED, "both went on from the second");
    }
}

#[test]
fn a_request_of_a_killed_agent_that_arrives_after_its_successors_is_refused_and_the_successor_sends_it_again() {
    let killed = of(start(3, 2, &[]), 8, 2);
    let successor = |first, count| of(start(4, 9, &[(3, 2)]), first, count);
    let Admission::Take { through, .. } = admit(Some(&known()), &successor(8, 1)) else { panic!("it goes on") };
    let lane = LaneRow { through, start: Some(LaneStart { number: 4, word: StartWord::new(4) }), ..known() };
    assert_eq!(admit(Some(&lane), &killed), SUPERSEDED);
    assert_eq!(admit(Some(&lane), &successor(9, 1)), Admission::Take { after: 8, through: 9 });
}

#[test]
fn who_names_no_start_is_treated_as_before_and_who_names_the_first_must_hold_what_was_received() {
    assert_eq!(admit(Some(&known()), &batch(8, 1, 1)), Admission::Take { after: 7, through: 8 });
    let older = mark(5, 7, 1);
    assert_eq!(admit(Some(&older), &of(start(1, 7, &[]), 8, 1)), Admission::Take { after: 7, through: 8 });
    assert_eq!(admit(Some(&older), &of(start(1, 6, &[]), 7, 1)), BEHIND);
    assert_eq!(admit(None, &of(start(9, 0, &[]), 8, 1)), Admission::Take { after: 7, through: 8 }, "never heard of");
}

/// One lane of a buffer. Its records are told apart by their content.
#[derive(Debug, Clone)]
struct Buffer {
    epoch: u64,
    number: u64,
    /// Word and what was given out at its beginning, newest first.
    starts: Vec<(u64, u64)>,
    records: Vec<u64>,
    through: u64,
}

/// A batch on its way, with what is in it.
#[derive(Debug, Clone)]
struct Sent {
    epoch: u64,
    incoming: Incoming,
    contents: Vec<u64>,
}

impl Buffer {
    fn next(&self) -> u64 {
        self.records.len() as u64 + 1
    }

    fn start(&mut self, world: &mut World) {
        self.number += 1;
        self.starts.insert(0, (world.draw(), self.next() - 1));
        self.starts.truncate(MAX_EARLIER + 1);
    }

    /// A new epoch; sequences go on.
    fn begin_anew(&mut self, world: &mut World) {
        (self.epoch, self.number) = (world.draw(), 0);
        self.starts.clear();
        self.start(world);
    }

    fn batch(&self, count: u64) -> Sent {
        let first = self.through + 1;
        let count = count.min(self.next() - first);
        let named =
            Start { word: StartWord::new(self.starts[0].0), ..start(self.number, self.starts[0].1, &self.starts[1..]) };
        let contents = self.records[self.through as usize..][..count as usize].to_vec();
        Sent { epoch: self.epoch, incoming: of(named, first, count), contents }
    }
}

/// The collector's side of one agent, and a source of numbers that nobody had before.
#[derive(Debug, Default)]
struct World {
    drawn: u64,
    lanes: BTreeMap<u64, LaneRow>,
    stored: HashSet<u64>,
}

impl World {
    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    fn take(&mut self, sent: &Sent) -> Admission {
        let Sent { epoch, incoming, contents } = sent;
        let admission = admit(self.lanes.get(epoch), incoming);
        if let Admission::Take { after, through } = admission {
            let new = usize::try_from(after + 1 - incoming.first).expect("no gap");
            self.stored.extend(&contents[new..]);
            let start = incoming.start.as_ref().map(|it| LaneStart { number: it.number, word: it.word });
            self.lanes.insert(*epoch, LaneRow { start, ..mark(incoming.first, through, 1) });
        }
        admission
    }

    /// What the agent does with the answer; false when it was refused.
    fn answer(&mut self, buffer: &mut Buffer, admission: Admission) -> Result<bool, TestCaseError> {
        match admission {
            Admission::Take { through, .. } | Admission::Repeat { through } => {
                prop_assert!(through < buffer.next(), "it knows of no more than was given out");
                for sequence in buffer.through + 1..=through {
                    let content = buffer.records[sequence as usize - 1];
                    prop_assert!(self.stored.contains(&content), "{sequence} is settled and stored nowhere");
                }
                buffer.through = buffer.through.max(through);
                Ok(true)
            }
            Admission::OtherStart(_) => {
                buffer.begin_anew(self);
                Ok(false)
            }
            other => Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize, u64),
    /// Sent and answered; when lost, the answer never came.
    Send {
        who: usize,
        count: u64,
        is_lost: bool,
    },
    /// Sent, and on its way for long.
    Delay(usize, u64),
    Arrive(usize),
    Restart(usize),
    /// Keeps a copy of the state, of a running agent or one that ended.
    Copy(usize),
    /// An agent starts on a copy, beside all others or in the place of one.
    RunCopy(usize),
    PutBack(usize, usize),
}

fn alone() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<usize>(), 1_u64..6).prop_map(|(who, count)| Step::Append(who, count)),
        4 => (any::<usize>(), 0_u64..5, any::<bool>()).prop_map(|(who, count, is_lost)| Step::Send { who, count, is_lost }),
        1 => (any::<usize>(), 1_u64..5).prop_map(|(who, count)| Step::Delay(who, count)),
        1 => any::<usize>().prop_map(Step::Arrive),
        2 => any::<usize>().prop_map(Step::Restart),
    ]
}

fn with_copies() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => alone(),
        1 => any::<usize>().prop_map(Step::Copy),
        1 => any::<usize>().prop_map(Step::RunCopy),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(who, copy)| Step::PutBack(who, copy)),
    ]
}

/// Lets all of it happen, and everybody send what is left. How often a batch that was not late was refused, with no more
/// starts unheard than are told.
fn live(steps: Vec<Step>) -> Result<usize, TestCaseError> {
    let mut world = World::default();
    let mut first = Buffer { epoch: 0, number: 0, starts: Vec::new(), records: Vec::new(), through: 0 };
    first.begin_anew(&mut world);
    let (mut agents, mut copies, mut late) = (vec![first], Vec::<Buffer>::new(), Vec::<Sent>::new());
    let (mut refused, mut unheard) = (0, 0);
    let at = |number: usize, of: usize| number % of;
    for step in steps {
        match step {
            Step::Append(who, count) => {
                let who = at(who, agents.len());
                agents[who].records.extend((0..count).map(|_| world.draw()));
            }
            Step::Send { who, count, is_lost } => {
                let who = at(who, agents.len());
                let admission = world.take(&agents[who].batch(count));
                if matches!(admission, Admission::Take { .. }) {
                    unheard = 0;
                }
                if !is_lost && !world.answer(&mut agents[who], admission)? && unheard <= MAX_EARLIER {
                    refused += 1;
                }
            }
            Step::Delay(who, count) => late.push(agents[at(who, agents.len())].batch(count)),
            Step::Arrive(which) if !late.is_empty() => {
                let sent = late.remove(at(which, late.len()));
                world.take(&sent);
            }
            Step::Restart(who) => {
                unheard += 1;
                let who = at(who, agents.len());
                agents[who].start(&mut world);
            }
            Step::Copy(who) => copies.push(agents[at(who, agents.len())].clone()),
            Step::RunCopy(copy) if !copies.is_empty() && agents.len() < 4 => {
                let mut copy = copies[at(copy, copies.len())].clone();
                copy.start(&mut world);
                agents.push(copy);
            }
            Step::PutBack(who, copy) if !copies.is_empty() => {
                let who = at(who, agents.len());
                agents[who] = copies[at(copy, copies.len())].clone();
                agents[who].start(&mut world);
            }
            Step::Arrive(_) | Step::RunCopy(_) | Step::PutBack(..) => (),
        }
    }
    for mut buffer in agents {
        for _ in 0..2 {
            let admission = world.take(&buffer.batch(u64::MAX));
            world.answer(&mut buffer, admission)?;
        }
        prop_assert_eq!(buffer.through + 1, buffer.next(), "two requests are enough for everything");
        prop_assert!(buffer.records.iter().all(|it| world.stored.contains(it)), "all of it is stored");
    }
    Ok(refused)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_answered_as_settled_is_stored_however_buffers_are_copied_and_put_back(
        steps in proptest::collection::vec(with_copies(), 1..80),
    ) {
        live(steps)?;
    }

    #[test]
    fn a_buffer_that_is_neither_copied_nor_put_back_is_never_refused(steps in proptest::collection::vec(alone(), 1..80)) {
        prop_assert_eq!(live(steps)?, 0);
    }
}
