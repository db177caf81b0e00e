//! The collector's own certificates over the years, on a real disk and with a clock that jumps.

use std::path::Path;

use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;

use super::*;
use crate::pki::Authority;
use crate::pki::life::Standing;

const DAY: u64 = 86_400;

fn at(day: u64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + (day * DAY) as i64).expect("in range")
}

struct Years {
    _room: TempDir,
    files: Files,
    certificates: Certificates,
}

impl Years {
    fn begin() -> Self {
        let room = tempfile::tempdir().expect("makes one");
        let path = |name: &str| room.path().join(name);
        let files = Files {
            authority_key: path("ca.key"),
            authority: path("ca.pem"),
            server_key: path("server.key"),
            server: path("server.pem"),
        };
        let lives = Lives::default();
        let authority = Authority::create(lives.authority, at(0)).expect("makes one");
        let server =
            authority.sign_server(&["c.example.org".into(), "::1".into()], lives.server, at(0)).expect("signs");
        Keyring::new(authority).write(&files.authority_key, &files.authority, at(0)).expect("writes");
        pki::write_secret(&files.server_key, &server.key).expect("writes");
        pki::write_public(&files.server, &server.certificate).expect("writes");
        let certificates = Certificates::open(files.clone(), Settings::default(), at(0)).expect("opens");
        Self { _room: room, files, certificates }
    }

    /// Lets time pass until that day, with a look each day; how often what is shown was swapped.
    fn until(&self, from: u64, to: u64) -> usize {
        let mut shown = self.certificates.for_agents();
        let swapped = |day| {
            self.certificates.keep(at(day));
            std::mem::take(&mut shown.has_changed().expect("is there")).then(|| shown.mark_unchanged()).is_some()
        };
        (from..=to).map(swapped).filter(|it| *it).count()
    }

    fn standing(&self, day: u64) -> Vec<(&'static str, Standing)> {
        self.certificates.kept().borrow().lives.iter().map(|it| (it.name, it.validity.standing(at(day)))).collect()
    }
}

fn first(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("PEM")
}

#[test]
fn the_servers_certificate_is_renewed_at_two_thirds_with_its_key_and_names() {
    let years = Years::begin();
    let (before, key) = (first(&years.files.server), std::fs::read(&years.files.server_key).expect("reads"));
    assert_eq!(years.until(1, 549), 0);
    assert_eq!(first(&years.files.server), before);
    assert_eq!(years.until(550, 560), 1);
    let after = first(&years.files.server);
    assert_ne!(after, before);
    assert_eq!(pki::names_of(&after), ["c.example.org", "::1"]);
    assert_eq!(std::fs::read(&years.files.server_key).expect("reads"), key);
    assert!(years.standing(560).iter().all(|(_, it)| *it == Standing::Good));
}

#[test]
fn over_forty_years_nothing_of_ours_ends_and_each_authority_is_known_before_it_signs() {
    let years = Years::begin();
    let mut known: Vec<CertificateDer<'static>> = pki::read_chain(&years.files.authority).expect("reads");
    for day in (10..40 * 365).step_by(10) {
        years.certificates.keep(at(day));
        assert!(years.standing(day).iter().all(|(_, it)| *it == Standing::Good), "{:?}", years.standing(day));
        let chain = pki::read_chain(&years.files.server).expect("reads");
        assert!(Validity::of(&chain[0]).expect("reads").holds(at(day)));
        assert!(known.contains(&chain[1]), "day {day}: agents that renewed 20 days ago know who signs");
        if day % 20 == 0 {
            known = CertificateDer::pem_slice_iter(years.certificates.bundle(at(day)).as_bytes())
                .collect::<Result<_, _>>()
                .expect("PEM");
            assert!((1..=2).contains(&known.len()));
        }
        let reopened = day % 500 == 0;
        if reopened {
            let again = Certificates::open(years.files.clone(), Settings::default(), at(day)).expect("opens");
            assert_eq!(again.bundle(at(day)), years.certificates.bundle(at(day)), "it is all on the disk");
        }
    }
}

#[test]
fn a_look_that_fails_changes_nothing_and_the_next_one_mends_it() {
    let years = Years::begin();
    let key = std::fs::read(&years.files.server_key).expect("reads");
    std::fs::write(&years.files.server_key, "nothing").expect("writes");
    assert_eq!(years.until(560, 562), 0, "the old one is still good");
    assert_eq!(years.standing(800)[0], ("server", Standing::Soon), "and it is warned of in time");
    let failure = years.certificates.kept().borrow().failure.clone().unwrap_or_default();
    assert!(failure.contains("server.key") && failure.contains("a private key in PEM"), "{failure}");
    std::fs::write(&years.files.server_key, key).expect("writes");
    assert_eq!(years.until(800, 801), 1);
    assert_eq!(years.standing(801)[0], ("server", Standing::Good));
    assert_eq!(years.certificates.kept().borrow().failure, None);
}

#[test]
fn what_is_brought_is_swapped_for_its_listener_and_what_is_bad_changes_nothing() {
    let years = Years::begin();
    let theirs = Authority::create(Lives::default().authority, at(0)).expect("makes one");
    let path = |name: &str| years.files.server.with_file_name(name);
    let brought = |name: &str| ServerFiles {
        certificate: path(&format!("{name}.pem")),
        key: path(&format!("{name}.key")),
        authority: path("theirs.pem"),
    };
    let write = |name: &str, made: u64, days: u64| {
        let life = Duration::from_secs(days * DAY);
        let signed = theirs.sign_server(&["c.example.org".into()], life, at(made)).expect("signs");
        std::fs::write(path(&format!("{name}.pem")), signed.certificate).expect("writes");
        std::fs::write(path(&format!("{name}.key")), signed.key).expect("writes");
    };
    std::fs::write(path("theirs.pem"), theirs.pem()).expect("writes");
    write("agents", 0, 90);
    write("people", 0, 90);
    let settings = Settings {
        agents: Brought { server: Some(brought("agents")), clients: Some(path("theirs.pem")) },
        people: Brought { server: Some(brought("people")), clients: None },
        ..Settings::default()
    };
    let it = Certificates::open(years.files.clone(), settings.clone(), at(1)).expect("opens");
    let (mut agents, mut people) = (it.for_agents(), it.for_people());
    let mut swapped = |day: u64| {
        it.keep(at(day));
        [&mut agents, &mut people].map(|side| {
            let is_new = side.has_changed().expect("is there");
            side.mark_unchanged();
            is_new
        })
    };
    assert!(it.bundle(at(1)).starts_with(theirs.pem()), "agents are told to trust it");
    assert_eq!(swapped(2), [false, false]);
    write("people", 2, 90);
    assert_eq!(swapped(3), [false, true]);
    std::fs::copy(path("agents.key"), path("people.key")).expect("copies");
    write("agents", 3, 90);
    assert_eq!(swapped(4), [true, false], "one that does not fit holds up nobody else");
    let failure = it.kept().borrow().failure.clone().unwrap_or_default();
    assert!(failure.contains("people.pem") && failure.contains("people.key"), "{failure}");
    write("people", 4, 1);
    assert_eq!(swapped(7), [false, false], "one that has ended is refused");
    assert_eq!(
        it.kept().borrow().lives.iter().map(|it| it.name).collect::<Vec<_>>(),
        ["agents", "people", "authority"]
    );
    write("people", 7, 90);
    assert_eq!(swapped(8), [false, true]);
    assert_eq!(it.kept().borrow().failure, None);
    assert!(Certificates::open(years.files.clone(), settings, at(200)).is_ok(), "a collector starts, and says so");
}
