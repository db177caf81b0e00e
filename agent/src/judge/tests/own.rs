//! The agent's own buffer, clock and certificate.

use tickbird_shared::Lane;

use super::*;
use crate::judge::{BudgetSeen, BufferSums, LaneSums};

fn sums(used: u64, evicted: u64) -> BufferSums {
    let lane =
        |lane, bytes_on_disk, evicted| LaneSums { lane, backlog: 10_000, bytes_on_disk, evicted, quarantined: 0 };
    BufferSums {
        lanes: [lane(Lane::Urgent, 0, evicted), lane(Lane::Bulk, used, 0)],
        max_bytes: 64 << 20,
        available_bytes: 10 << 30,
        is_disk_full: false,
    }
}

/// Looks every ten seconds.
fn own(night: &mut Night, looks: u32, seen: BufferSeen, ahead: Option<(f64, f64)>) {
    let ahead = ahead.map(|(low, high)| {
        (SignedDuration::from_millis((low * 1e3) as i64), SignedDuration::from_millis((high * 1e3) as i64))
    });
    for _ in 0..looks {
        night.wait(10.0);
        let (now, since_boot) = (night.moment(), night.now());
        let mut found = night.judge.own_clock(since_boot, ahead, now);
        found.extend(night.judge.own_buffer(&seen, now));
        night.tell(found);
    }
}

fn buffer(night: &mut Night, looks: u32, sums: BufferSums, unbuffered: u64) {
    own(night, looks, BufferSeen { sums: Some(sums), unbuffered, held: 0 }, None);
}

#[test]
fn a_buffer_that_fills_is_a_warning_until_it_empties() {
    let mut night = Night::begin();
    buffer(&mut night, 3, sums(40 << 20, 0), 0);
    assert_eq!((night.told().as_str(), night.is("agent.buffer", "agent")), ("", "ok"));
    buffer(&mut night, 2, sums(52 << 20, 0), 0);
    assert_eq!(night.told(), "40s agent.buffer began warning");
    buffer(&mut night, 3, sums(1 << 20, 0), 0);
    assert!(night.told().ends_with("cleared warning"));
}

#[test]
fn findings_that_are_lost_or_refused_are_critical_and_those_of_a_former_life_are_not() {
    let mut night = Night::begin();
    buffer(&mut night, 2, sums(1 << 20, 7), 0);
    assert_eq!(night.told(), "", "they were told when they were lost");
    buffer(&mut night, 1, sums(1 << 20, 9), 0);
    assert_eq!(night.told(), "30s agent.buffer began critical");
    assert!(night.last().summary.starts_with("the agent's buffer has lost findings"), "{}", night.last().summary);
    buffer(&mut night, 64, sums(1 << 20, 9), 0);
    assert!(night.told().ends_with("cleared critical"), "{}", night.told());
    buffer(&mut night, 1, sums(1 << 20, 9), 3);
    assert!(night.told().ends_with("agent.buffer began critical"), "{}", night.told());
    assert!(night.last().summary.contains("takes no records"), "{}", night.last().summary);
    let full = BufferSums { available_bytes: 1 << 20, is_disk_full: true, ..sums(1 << 20, 9) };
    buffer(&mut night, 10, full, 3);
    assert_eq!(night.is("agent.buffer", "agent"), "critical", "no space is left for the next one");
    buffer(&mut night, 4, sums(1 << 20, 9), 3);
    assert!(night.told().ends_with("cleared critical"), "{}", night.told());
}

/// Ten-second looks at an agent of 5 % of a core and 64 MiB.
fn budget(night: &mut Night, looks: u32, cpu: f64, mebibytes: u64, times_slower: u32) {
    let memory = Some(mebibytes << 20);
    let seen = BudgetSeen { cpu: Some(cpu), cpu_budget: 0.05, memory, memory_budget: 64 << 20, times_slower };
    for _ in 0..looks {
        night.wait(10.0);
        let found = night.judge.own_budget(&seen, night.moment());
        night.tell(found);
    }
}

#[test]
fn an_agent_over_its_budget_for_a_minute_is_told_and_a_start_or_a_burst_is_not() {
    let mut night = Night::begin();
    budget(&mut night, 5, 0.5, 20, 1);
    budget(&mut night, 3, 0.01, 20, 1);
    assert_eq!(night.told(), "");
    budget(&mut night, 8, 0.051, 20, 8);
    let told = night.told();
    assert!(told.contains("agent.slow began warning") && told.contains("agent.budget began warning"), "{told}");
    let summary = night.last().summary.clone();
    assert_eq!(
        summary,
        "the agent takes 5.1 % of a core; its budget is 5.0 % of a core, though it looks at the host 8 times less often than configured"
    );
    budget(&mut night, 6, 0.01, 20, 1);
    assert_eq!(night.told().matches("cleared warning").count(), 2, "{}", night.told());
    budget(&mut night, 8, 0.01, 80, 1);
    assert!(night.told().ends_with("agent.budget began warning"), "{}", night.told());
    assert_eq!(night.last().summary, "the agent takes 80 MiB; its budget is 64 MiB");
}

#[test]
fn an_agent_that_looks_half_as_often_is_within_its_budget_and_no_fault() {
    let mut night = Night::begin();
    budget(&mut night, 60, 0.03, 20, 2);
    assert_eq!(night.told(), "");
    let unmeasured = BudgetSeen { cpu: None, cpu_budget: 0.05, memory: None, memory_budget: 64 << 20, times_slower: 1 };
    let found = night.judge.own_budget(&unmeasured, night.moment());
    assert!(found.is_empty());
}

#[test]
fn a_clock_that_differs_from_the_collectors_is_told_and_an_unsure_one_clears_nothing() {
    let mut night = Night::begin();
    let seen = BufferSeen { sums: None, unbuffered: 0, held: 0 };
    own(&mut night, 3, seen, Some((-0.9, 1.1)));
    assert_eq!(night.told(), "");
    own(&mut night, 1, seen, Some((-600.5, -599.4)));
    assert_eq!(night.told(), "40s agent.clock began warning");
    assert!(night.last().summary.starts_with("this host's clock is 600.0 s ahead of"), "{}", night.last().summary);
    own(&mut night, 5, seen, Some((-20.0, 30.0)));
    assert!(!night.told().contains("cleared"), "an answer that took long says little");
    own(&mut night, 3, seen, Some((-0.5, 0.6)));
    assert!(night.told().ends_with("cleared warning"), "{}", night.told());
}

#[test]
fn a_clock_that_is_set_is_told_for_a_minute_and_one_that_is_slewed_is_not() {
    let mut night = Night::begin();
    let look = |night: &mut Night, ahead: f64| {
        night.wait(1.0);
        let wall = night.moment().wall.checked_add(SignedDuration::from_millis((ahead * 1e3) as i64)).expect("fits");
        let found = night.judge.own_clock(night.now(), None, Moment { wall, ..night.moment() });
        night.tell(found);
    };
    for second in 0..60 {
        look(&mut night, f64::from(second) * 0.05);
    }
    assert_eq!(night.told(), "", "slewed by three seconds in a minute");
    look(&mut night, -3_600.0);
    assert_eq!(night.told(), "61s agent.clock began warning");
    assert!(night.last().summary.starts_with("this host's clock was set back by 3602.9 s"), "{}", night.last().summary);
    for _ in 0..70 {
        look(&mut night, -3_600.0);
    }
    assert!(night.told().ends_with("cleared warning"), "{}", night.told());
}

#[test]
fn a_certificate_that_is_not_renewed_is_told_long_before_its_end_and_one_that_is_renewed_never() {
    let mut night = Night::begin();
    let begins = night.moment().wall;
    let day = SignedDuration::from_hours(24);
    let look = |night: &mut Night, begins: Timestamp, at: i32, error: Option<&str>| {
        night.wait(10.0);
        let ends = begins.checked_add(day * 30).expect("fits");
        let wall = begins.checked_add(day * at).expect("fits");
        let seen = CertificateSeen { begins, ends, error };
        let found = night.judge.own_certificate(&seen, Moment { wall, ..night.moment() });
        night.tell(found);
    };
    for at in [0, 10, 20, 23] {
        look(&mut night, begins, at, None);
    }
    assert_eq!((night.told().as_str(), night.is("agent.certificate", "agent")), ("", "ok"));
    look(&mut night, begins, 25, Some("the collector answers 503"));
    assert_eq!(night.told(), "50s agent.certificate began warning");
    let summary = &night.last().summary;
    assert_eq!(summary, "the agent's certificate ends in 5 d and is not renewed: the collector answers 503");
    look(&mut night, begins, 29, None);
    assert!(night.told().ends_with("worsened critical"), "{}", night.told());
    look(&mut night, begins, 31, None);
    assert_eq!(night.is("agent.certificate", "agent"), "critical");
    let renewed = begins.checked_add(day * 31).expect("fits");
    for _ in 0..3 {
        look(&mut night, renewed, 0, None);
    }
    assert!(night.told().ends_with("cleared critical"), "{}", night.told());
}
