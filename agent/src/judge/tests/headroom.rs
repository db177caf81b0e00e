//! When a server has no slot left: a range while it fills steadily, and nothing where it does not.

use super::rows::server;
use super::*;
use crate::inspect::Value;

const AT: &str = "10.0.0.5:5432";
const CHECK: &str = "db.headroom";

/// Looks each five seconds at a server with 97 slots, of which so many are used.
fn filled(looks: u32, used: impl Fn(f64) -> f64) -> Night {
    let mut night = Night::begin();
    fill(&mut night, looks, Value::Known(97.0), used);
    night
}

fn fill(night: &mut Night, looks: u32, slots: Value, used: impl Fn(f64) -> f64) {
    night.scenes(looks, |seconds| {
        let look = ServerLook { used: Value::Known(used(seconds)), slots: slots.clone(), ..server(AT, Vec::new()) };
        (HostLook::default(), look)
    });
}

fn empty_in(night: &Night) -> Value {
    let target = server(AT, Vec::new()).target;
    night.judge.server_empty_in(&target, night.now())
}

fn reason(night: &Night) -> String {
    let Value::Unknown(reason) = empty_in(night) else { panic!("a forecast: {:?}", empty_in(night)) };
    reason.to_string()
}

#[test]
fn a_server_that_fills_steadily_is_empty_within_the_range() {
    // One more each 8 s: 22 at 160 s, so the 75 that are left last 600 s.
    let night = filled(32, |seconds| 2.0 + (seconds / 8.0).floor());
    let Value::Between(low, high) = empty_in(&night) else { panic!("no range: {:?}", empty_in(&night)) };
    assert!((450.0..=600.0).contains(&low) && (600.0..=800.0).contains(&high), "{low} to {high}");
}

#[test]
fn slots_that_are_a_range_widen_the_forecast() {
    let mut night = Night::begin();
    fill(&mut night, 32, Value::Between(47.0, 97.0), |seconds| 2.0 + (seconds / 8.0).floor());
    let Value::Between(low, high) = empty_in(&night) else { panic!("no range: {:?}", empty_in(&night)) };
    assert!(low <= 200.0 && high >= 600.0, "{low} to {high}");
}

#[test]
fn a_server_that_swings_or_rests_has_no_forecast() {
    let swings = filled(100, |seconds| 20.0 + (10.0 * (seconds / 25.0).sin()).round());
    assert_eq!(reason(&swings), "not yet known: a steady rise");
    let rests = filled(100, |_| 60.0);
    assert_eq!(reason(&rests), "not yet known: a steady rise");
    let stepped = filled(100, |seconds| if seconds < 250.0 { 20.0 } else { 40.0 });
    assert_eq!(reason(&stepped), "not yet known: a steady rise", "a deploy adds its pools at once");
    let full = filled(100, |seconds| (2.0 + (seconds / 8.0).floor()).min(30.0));
    assert_eq!(reason(&full), "not yet known: a steady rise", "it ended minutes ago");
}

#[test]
fn without_slots_or_a_look_nothing_is_guessed() {
    let mut night = Night::begin();
    assert_eq!(reason(&night), "not yet known: a look at the server");
    let hidden = || Value::Unknown(Reason::Denied("max_connections".into()));
    fill(&mut night, 32, hidden(), |seconds| 2.0 + (seconds / 8.0).floor());
    assert_eq!(reason(&night), "not yet known: a limit");
}

#[test]
fn the_finding_says_when_none_is_left() {
    let mut night = filled(95, |seconds| 20.0 + (seconds / 8.0).floor());
    assert_eq!(night.told(), "475s db.headroom began warning");
    let finding = night.last();
    assert!(finding.summary.contains("(81.4 %); at this rate it has none left in "), "{}", finding.summary);
    let range = &evidence(finding)["empty_in_seconds"];
    let (low, high) = (range[0].as_f64().expect("a number"), range[1].as_f64().expect("a number"));
    assert!(low <= 144.0 && (144.0..220.0).contains(&high), "18 slots are left at one in 8 s: {range}");
    let mut steady = filled(94, |_| 80.0);
    assert_eq!(steady.told(), "15s db.headroom began warning");
    assert!(!steady.last().summary.contains("at this rate"), "{}", steady.last().summary);
    assert_eq!(evidence(steady.last())["empty_in_seconds"], "not yet known: a steady rise");
    assert_eq!(night.is(CHECK, "server:"), "warning");
}
