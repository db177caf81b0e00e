//! Two pools of one process to one server that nothing tells apart: the same database, user and application name, or a
//! server that nobody asks. What one of them does may not be held against the connections of the other.

use std::collections::BTreeMap;

use super::Night;
use super::leases::{Dice, Sim, host};
use crate::judge::Verdict;

/// Runs the pools of one process; gives the looks at connections that nobody kept and that were called held, by port.
fn run(night: &mut Night, sims: &mut [&mut Sim], seconds: u32) -> BTreeMap<u16, usize> {
    let mut wrong = BTreeMap::new();
    let began = night.now().as_secs_f64();
    for second in 1..=seconds {
        let mut seen = Vec::new();
        for sim in sims.iter_mut() {
            seen.extend(sim.look(began + f64::from(second)));
        }
        let limit = sims.iter().map(|sim| sim.most).sum();
        night.wait(1.0).host(&host(seen, limit));
        let kept: Vec<u16> =
            sims.iter().flat_map(|sim| &sim.lines).filter(|it| it.leaked.is_some()).map(|it| it.port).collect();
        for it in night.judge.pools().iter().flat_map(|pool| &pool.connections) {
            let port = it.local.address().expect("TCP").port();
            if it.verdict == Verdict::Held && !kept.contains(&port) {
                *wrong.entry(port).or_insert(0) += 1;
            }
        }
    }
    wrong
}

/// Neighbouring seeds make different runs.
fn dice(seed: u64) -> Dice {
    Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// What was said that is not so.
#[derive(Default)]
struct Said(Vec<String>);

impl Said {
    fn take(&mut self, night: &mut Night, wrong: &BTreeMap<u16, usize>, what: &str) {
        let told = night.told_of("pool.leak");
        if !wrong.is_empty() || !told.is_empty() {
            self.0.push(format!("{what}: held {wrong:?} {told}"));
        }
    }

    fn is_nothing(&self) {
        assert!(self.0.is_empty(), "{} runs: {:#?}", self.0.len(), self.0);
    }
}

#[test]
fn a_slow_pool_beside_a_busy_queue_is_not_passed_over() {
    let mut said = Said::default();
    for seed in 1..=24 {
        let mut dice = dice(seed * 104_729);
        let (rate, open) = (4.0 + 40.0 * dice.unit(), 6 + (dice.unit() * 14.0) as usize);
        let few = 1 + (dice.unit() * 5.0) as usize;
        // Each of its connections is used every eight to forty seconds.
        let slow = few as f64 / (8.0 + 32.0 * dice.unit());
        let mut night = Night::begin();
        let mut busy = Sim::new(seed, true, rate, open);
        let mut second = Sim::beside(seed + 100, seed % 2 == 0, slow, few, 41_000);
        let wrong = run(&mut night, &mut [&mut busy, &mut second], 500);
        said.take(&mut night, &wrong, &format!("seed {seed}: {open} at {rate}/s beside {few} at {slow}/s"));
    }
    said.is_nothing();
}

#[test]
fn a_slow_pool_that_stops_is_no_leak() {
    let mut said = Said::default();
    for seed in 1..=24 {
        let mut dice = dice(seed * 15_485_863);
        let rate = 8.0 + 30.0 * dice.unit();
        let open = 3 + (dice.unit() * 6.0) as usize;
        // A round of its queue takes two to eight seconds, so its last uses lie that far apart.
        let slow = open as f64 / (2.0 + 6.0 * dice.unit());
        let mut night = Night::begin();
        let mut busy = Sim::new(seed, true, rate, 10);
        let mut second = Sim::beside(seed + 100, true, slow, open, 41_000);
        let mut wrong = run(&mut night, &mut [&mut busy, &mut second], 240);
        second.rate = 0.0;
        wrong.extend(run(&mut night, &mut [&mut busy, &mut second], 200));
        said.take(&mut night, &wrong, &format!("seed {seed}: 10 at {rate}/s beside {open} at {slow}/s"));
    }
    said.is_nothing();
}

#[test]
fn a_pool_that_grows_says_nothing_of_a_slow_one_beside_it() {
    let mut said = Said::default();
    for seed in 1..=24 {
        let mut dice = dice(seed * 32_452_843);
        let few = 1 + (dice.unit() * 4.0) as usize;
        let slow = few as f64 / (5.0 + 30.0 * dice.unit());
        let mut night = Night::begin();
        let mut grows = Sim::new(seed, seed % 2 == 0, 15.0, 2);
        grows.most = 30;
        let mut second = Sim::beside(seed + 100, seed % 3 == 0, slow, few, 41_000);
        let mut wrong = run(&mut night, &mut [&mut grows, &mut second], 150);
        for rate in [40.0, 80.0, 140.0, 60.0, 220.0] {
            grows.rate = rate;
            wrong.extend(run(&mut night, &mut [&mut grows, &mut second], 60));
        }
        said.take(&mut night, &wrong, &format!("seed {seed}: {few} at {slow}/s, {} grown", grows.lines.len()));
    }
    said.is_nothing();
}

/// A connection of its own is opened beside a stack whose lower connections rest: a listener, a lock, a second engine's
/// first one.
#[test]
fn a_connection_that_is_opened_beside_a_resting_stack_is_no_growth() {
    let mut said = Said::default();
    for seed in 1..=24 {
        let mut dice = dice(seed * 49_979_687);
        let mut night = Night::begin();
        let mut stack = Sim::new(seed, seed % 4 == 0, 3.0 + 30.0 * dice.unit(), 12);
        let mut alone = Sim::beside(seed + 100, false, 0.0, 0, 41_000);
        alone.most = 1;
        let mut wrong = run(&mut night, &mut [&mut stack, &mut alone], 150);
        alone.rate = 1.0;
        wrong.extend(run(&mut night, &mut [&mut stack, &mut alone], 4));
        // Afterwards it rests, or is used now and then.
        alone.rate = if seed % 2 == 0 { 0.0 } else { 0.2 };
        wrong.extend(run(&mut night, &mut [&mut stack, &mut alone], 200));
        said.take(&mut night, &wrong, &format!("seed {seed}"));
    }
    said.is_nothing();
}
