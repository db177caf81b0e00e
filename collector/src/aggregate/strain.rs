//! What the collector's own parts bear: room on its disk, events that wait for the ledger, receivers that are away.
//!
//! Looked at each second beside the ledger, which may be what is slow. A part is over its bound, under the one that ends it,
//! or neither; over for its hold it fires. Until a part was once known for certain (after a start, while a receiver was not
//! tried) nothing is said of it, so what fired before a restart goes on until it is known to be over.

use std::collections::BTreeMap;
use std::time::Duration;

use tickbird_shared::Timestamp;

use crate::store::Room;

/// The most that one look counts as watched: looks come each second, so in a longer gap nobody looked.
const LONGEST_STEP: Duration = Duration::from_secs(3);

/// When the collector tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The disk is low with fewer free bytes than this, or than a tenth of the file system where that is less; it is over at
    /// half as much again. A store that grows by its 10 GiB in a month has days to go with 1 GiB, the default.
    pub disk_free: u64,
    /// How long it must be low. A minute by default: a backup that fills and leaves the disk is nobody's business.
    pub disk_hold: Duration,
    /// How long four of five places for waiting events must be taken, and how long half of them must be free for the end. 30 s
    /// by default: a fleet that comes back at once takes some seconds.
    pub queue_hold: Duration,
    /// How long a receiver must be away. Five minutes by default: it was restarted, or has a deploy.
    pub receiver_hold: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            disk_free: 1 << 30,
            disk_hold: Duration::from_secs(60),
            queue_hold: Duration::from_secs(30),
            receiver_hold: Duration::from_secs(300),
        }
    }
}

/// What one look found.
#[derive(Debug)]
pub struct Look {
    /// Room on the disk; none where nobody could say.
    pub room: Option<Room>,
    /// Events for the ledger.
    pub queue: Queue,
    /// Every configured receiver.
    pub receivers: Vec<Reach>,
}

/// Events that wait for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// How many wait.
    pub waiting: usize,
    /// How many may.
    pub places: usize,
}

/// Whether a receiver is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Its name in the configuration.
    pub name: String,
    /// It is asked only now and then, and something waits for it. None while nobody knows.
    pub is_away: Option<bool>,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// What the last one said.
    pub last_error: Option<String>,
    /// Recipients whom its last letter did not reach, and what the server said of them; none while nobody knows.
    pub left_out: Option<Vec<(String, u16)>>,
}

/// What is said of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Nothing yet: what was said before stands.
    #[default]
    Open,
    /// It has been over its bound for its hold, and was not under the other one since.
    Fires,
    /// It is under the bound that ends it.
    Clear,
}

/// How one part stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Judged {
    /// What is said.
    pub verdict: Verdict,
    /// Since when it is over its bound: while it is, and while it fires.
    pub over_since: Option<Timestamp>,
}

impl Judged {
    /// Whether a person should look: over the bound now, hold or not, or not yet under the other.
    pub fn is_strained(&self) -> bool {
        self.over_since.is_some() || self.verdict == Verdict::Fires
    }
}

/// Room on the disk, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// None where nobody could say.
    pub room: Option<Room>,
    /// Free bytes under which it is low.
    pub bound: u64,
    /// How it stands.
    pub judged: Judged,
}

/// Events that wait for the ledger, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// As of the last look.
    pub queue: Queue,
    /// The most that waited since it is over its bound: a ledger that hears of it is at work again.
    pub most: usize,
    /// How it stands.
    pub judged: Judged,
}

/// All parts, as of the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strain {
    /// Room on the disk.
    pub disk: Disk,
    /// Events that wait for the ledger.
    pub queue: Backlog,
    /// Every configured receiver.
    pub receivers: Vec<(Reach, Judged)>,
}

/// What is remembered between looks.
#[derive(Debug)]
pub struct Strains {
    settings: Settings,
    watched: Duration,
    looked_at: Option<Duration>,
    disk: Track,
    queue: Track,
    most: usize,
    receivers: BTreeMap<String, Track>,
}

impl Strains {
    /// Nothing is known yet.
    pub const fn new(settings: Settings) -> Self {
        Self {
            settings,
            watched: Duration::ZERO,
            looked_at: None,
            disk: Track::NEW,
            queue: Track::NEW,
            most: 0,
            receivers: BTreeMap::new(),
        }
    }

    /// Takes a look: at `elapsed` of any steady clock, `now` by that of the wall.
    pub fn take(&mut self, look: Look, elapsed: Duration, now: Timestamp) -> Strain {
        let step = elapsed.saturating_sub(self.looked_at.replace(elapsed).unwrap_or(elapsed));
        self.watched += step.min(LONGEST_STEP);
        let Settings { disk_free, disk_hold, queue_hold, receiver_hold } = self.settings;
        let at = (self.watched, now);
        let bound = look.room.map_or(disk_free, |room| disk_free.min(room.size / 10));
        let low = look.room.and_then(|room| between(room.free < bound, room.free >= bound + bound / 2));
        let disk = Disk { room: look.room, bound, judged: self.disk.hear(low, [disk_hold, Duration::ZERO], at) };
        let Queue { waiting, places } = look.queue;
        let full = between(waiting * 5 >= places * 4, waiting * 2 < places);
        // Its end has a hold too: it is what the ledger takes away in one go, and the ledger has to hear of it.
        let judged = self.queue.hear(full, [queue_hold; 2], at);
        self.most = if judged.is_strained() { self.most.max(waiting) } else { waiting };
        let queue = Backlog { queue: look.queue, most: self.most, judged };
        let tracks = &mut self.receivers;
        let judge = |reach: Reach| {
            let track = tracks.entry(reach.name.clone()).or_insert(Track::NEW);
            let judged = track.hear(reach.is_away, [receiver_hold, Duration::ZERO], at);
            (reach, judged)
        };
        Strain { disk, queue, receivers: look.receivers.into_iter().map(judge).collect() }
    }
}

/// True over one bound, false under the other, nothing between them.
const fn between(is_over: bool, is_under: bool) -> Option<bool> {
    if is_over {
        Some(true)
    } else if is_under {
        Some(false)
    } else {
        None
    }
}

/// One part over time.
#[derive(Debug)]
struct Track {
    verdict: Verdict,
    /// Over or under, without a break, since then.
    run: Option<(bool, Duration, Timestamp)>,
    /// When the run began that made it fire, while it does.
    fires_since: Option<Timestamp>,
}

impl Track {
    const NEW: Self = Self { verdict: Verdict::Open, run: None, fires_since: None };

    fn hear(&mut self, is_over: Option<bool>, holds: [Duration; 2], (at, now): (Duration, Timestamp)) -> Judged {
        if self.run.map(|(side, ..)| side) != is_over {
            self.run = is_over.map(|side| (side, at, now));
        }
        let [to_fire, to_clear] = holds;
        match self.run {
            Some((true, since, began)) if at - since >= to_fire => {
                self.verdict = Verdict::Fires;
                self.fires_since.get_or_insert(began);
            }
            Some((false, since, _)) if at - since >= to_clear => {
                self.verdict = Verdict::Clear;
                self.fires_since = None;
            }
            _ => (),
        }
        let over_since = self.run.and_then(|(side, _, since)| side.then_some(since));
        Judged { verdict: self.verdict, over_since: self.fires_since.or(over_since) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Watch {
        strains: Strains,
        second: u64,
        room: Option<Room>,
        waiting: usize,
        is_away: Option<bool>,
    }

    fn settings() -> Settings {
        let s = Duration::from_secs;
        Settings { disk_free: 100 * MIB, disk_hold: s(60), queue_hold: s(30), receiver_hold: s(300) }
    }

    impl Watch {
        fn new() -> Self {
            let strains = Strains::new(settings());
            Self { strains, second: 0, room: None, waiting: 0, is_away: None }
        }

        fn look(&mut self) -> Strain {
            self.second += 1;
            let now = Timestamp::from_second(1_790_000_000 + self.second.cast_signed()).expect("in range");
            let reach =
                Reach { name: "ops".into(), is_away: self.is_away, failures: 5, last_error: None, left_out: None };
            let queue = Queue { waiting: self.waiting, places: 1_000 };
            let look = Look { room: self.room, queue, receivers: vec![reach] };
            self.strains.take(look, Duration::from_secs(self.second), now)
        }

        /// So many looks, and how the parts stand after the last.
        fn after(&mut self, looks: u64) -> [Verdict; 3] {
            let strain = (0..looks).map(|_| self.look()).last().expect("one look at least");
            [strain.disk.judged.verdict, strain.queue.judged.verdict, strain.receivers[0].1.verdict]
        }

        fn has(&mut self, free: u64) -> &mut Self {
            self.room = Some(Room { free: free * MIB, size: 10_000 * MIB });
            self
        }
    }

    use Verdict::{Clear, Fires, Open};

    #[test]
    fn a_low_disk_fires_after_its_hold_and_is_over_at_half_as_much_again() {
        let mut watch = Watch::new();
        assert_eq!(watch.has(5_000).after(1)[0], Clear);
        assert_eq!(watch.has(99).after(60)[0], Clear, "59 seconds");
        assert_eq!(watch.has(101).after(1)[0], Clear, "and the hold begins anew");
        assert_eq!(watch.has(99).after(60)[0], Clear);
        assert_eq!(watch.after(1)[0], Fires);
        assert_eq!(watch.has(149).after(1_000)[0], Fires, "between the bounds it goes on");
        watch.room = None;
        assert_eq!(watch.after(1_000)[0], Fires, "nobody knows");
        assert_eq!(watch.has(150).after(1)[0], Clear);
        assert_eq!(watch.has(100).after(1_000)[0], Clear, "a healthy one at its bound");
    }

    #[test]
    fn a_small_disk_is_low_at_a_tenth_of_itself() {
        let mut watch = Watch::new();
        let of = |free: u64| Some(Room { free: free * MIB, size: 200 * MIB });
        watch.room = of(21);
        assert_eq!(watch.after(100)[0], Open, "it was never known to have enough, nor to be low");
        watch.room = of(19);
        assert_eq!(watch.after(61)[0], Fires);
        watch.room = of(30);
        assert_eq!(watch.after(1)[0], Clear);
    }

    #[test]
    fn a_queue_that_stays_full_fires_and_ends_when_half_of_it_stays_free() {
        let mut watch = Watch::new();
        assert_eq!(watch.after(31)[1], Clear);
        watch.waiting = 799;
        assert_eq!(watch.after(600)[1], Clear);
        watch.waiting = 800;
        assert_eq!(watch.after(30)[1], Clear, "29 seconds");
        assert!(watch.look().queue.judged.is_strained());
        assert_eq!(watch.after(1)[1], Fires);
        watch.waiting = 500;
        assert_eq!(watch.after(600)[1], Fires);
        assert_eq!(watch.look().queue.most, 800, "what is told is what it was, not what is left of it");
        watch.waiting = 499;
        assert_eq!(watch.after(30)[1], Fires);
        assert_eq!(watch.after(1)[1], Clear);
        // A fleet that comes back fills it for a moment, again and again.
        for _ in 0..100 {
            watch.waiting = 1_000;
            assert_eq!(watch.after(20)[1], Clear);
            watch.waiting = 0;
            assert_eq!(watch.after(1)[1], Clear);
        }
    }

    #[test]
    fn a_receiver_that_is_away_fires_after_its_hold_and_ends_with_its_first_yes() {
        let mut watch = Watch::new();
        assert_eq!(watch.after(1_000)[2], Open, "nobody has tried");
        watch.is_away = Some(true);
        assert_eq!(watch.after(300)[2], Open);
        assert_eq!(watch.after(1)[2], Fires);
        watch.is_away = Some(false);
        assert_eq!(watch.after(1)[2], Clear);
        for _ in 0..100 {
            watch.is_away = Some(true);
            assert_eq!(watch.after(299)[2], Clear, "one that is back in time is not told");
            watch.is_away = Some(false);
            assert_eq!(watch.after(1)[2], Clear);
        }
    }

    #[test]
    fn a_time_in_which_nobody_looked_does_not_count() {
        let mut watch = Watch::new();
        watch.is_away = Some(true);
        watch.after(1);
        watch.second += 10_000;
        assert_eq!(watch.after(1)[2], Open, "three seconds of it count");
        assert_eq!(watch.after(296)[2], Open);
        assert_eq!(watch.after(1)[2], Fires);
    }

    #[test]
    fn what_is_strained_says_since_when() {
        let mut watch = Watch::new();
        watch.has(5_000).after(1);
        let began = watch.has(9).look();
        assert!(began.disk.judged.is_strained() && began.disk.bound == 100 * MIB);
        watch.after(100);
        assert_eq!(watch.look().disk.judged.over_since, began.disk.judged.over_since);
        let between = watch.has(120).look().disk.judged;
        assert!(between.is_strained() && between.over_since == began.disk.judged.over_since);
        assert!(!watch.has(5_000).look().disk.judged.is_strained());
    }
}
