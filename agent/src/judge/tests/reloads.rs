//! What nobody looks at any more: switched off, out of the configuration, or its inspector does not come.

use super::*;
use crate::discover::TargetKey;
use crate::inspect::http_endpoint::Answer;

fn probe(port: u16, status: u16) -> Probe {
    Probe {
        target: TargetKey::endpoint(&format!("http://127.0.0.1:{port}/")),
        outcome: Ok(Answer { status, body_bytes: 20 }),
        phases: Vec::new(),
        certificate: None,
        status_as_expected: Some(status < 400),
        assertions: Vec::new(),
    }
}

/// A look at the host and at these pages every ten seconds.
fn looks(night: &mut Night, times: u32, pages: &[Probe]) {
    for _ in 0..times {
        night.wait(10.0).host(&HostLook::default());
        for page in pages {
            night.probe(page);
        }
    }
}

fn ran(night: &mut Night, inspector: &str, missed: u32) {
    let now = night.moment();
    let found = night.judge.ran(inspector, missed, now);
    night.tell(found);
}

fn reload(night: &mut Night, inspectors: &[&str]) {
    let now = night.moment();
    night.judge.begin_anew(inspectors.iter().map(|it| (*it).to_owned()), now);
    let found = night.judge.reconfigure(Thresholds::default(), now);
    night.tell(found);
}

/// The checks that the open list answers for, of these.
fn answered(night: &Night, ids: &[&str]) -> Vec<String> {
    let open = night.judge.open(night.moment());
    open.checks.into_iter().filter(|it| ids.contains(&it.as_str())).collect()
}

#[test]
fn a_target_that_a_reload_removed_ends_and_those_that_are_looked_at_stay() {
    let mut night = Night::begin();
    looks(&mut night, 3, &[probe(8000, 503), probe(8001, 503)]);
    assert_eq!(night.told(), ["20s http.status began critical"; 2].join("\n"));
    reload(&mut night, &["http 127.0.0.1:8001"]);
    ran(&mut night, "http 127.0.0.1:8001", 0);
    looks(&mut night, 5, &[probe(8001, 503)]);
    assert_eq!(night.told(), "", "some things are seen at each tenth look");
    looks(&mut night, 1, &[probe(8001, 503)]);
    assert_eq!(night.told(), "90s http.status target_gone critical");
    assert!(night.last().target.contains(":8000"), "{}", night.last().target);
    assert!(night.judge.states().iter().all(|it| !it.target.as_str().contains(":8000")), "nothing is left of it");
    assert_eq!(night.judge.firing().len(), 1);
}

#[test]
fn a_target_whose_inspector_does_not_come_back_after_a_reload_is_not_gone() {
    for missed_at_first in [1, 3] {
        let mut night = Night::begin();
        looks(&mut night, 3, &[probe(8000, 503)]);
        reload(&mut night, &["http 127.0.0.1:8000"]);
        night.told();
        for missed in missed_at_first..60 {
            looks(&mut night, 1, &[]);
            ran(&mut night, "http 127.0.0.1:8000", missed);
        }
        assert!(night.judge.firing().iter().any(|it| it.check == "http.status"), "{}", night.told());
        assert!(night.judge.firing().iter().any(|it| it.check == "agent.slow"), "{}", night.told());
    }
}

#[test]
fn nothing_is_concluded_while_an_inspector_does_not_look() {
    let mut night = Night::begin();
    looks(&mut night, 40, &[probe(8000, 200)]);
    let checks = ["http.status", "proc.zombie"];
    assert_eq!(answered(&night, &checks), ["proc.zombie", "http.status"]);
    ran(&mut night, "http 127.0.0.1:8000", 3);
    assert_eq!(answered(&night, &checks), Vec::<String>::new());
    ran(&mut night, "http 127.0.0.1:8000", 0);
    assert_eq!(answered(&night, &checks), ["proc.zombie", "http.status"]);
}

#[test]
fn what_is_switched_off_fires_nowhere_whatever_fired_before_the_restart() {
    let off = Override { enabled: Some(false), ..change("http.status") };
    let night = Night::with([off]);
    assert_eq!(answered(&night, &["http.status", "http.latency"]), ["http.status"], "the other has to look first");
}

#[test]
fn who_asks_no_server_has_none_that_fails() {
    let mut night = Night::begin();
    looks(&mut night, 31, &[]);
    assert_eq!(answered(&night, &["db.headroom"]), Vec::<String>::new(), "one may be asked still");
    night.judge.watches_servers(false);
    assert_eq!(answered(&night, &["db.headroom"]), ["db.headroom"]);
}
