//! A copied store that is damaged at hundreds of places: it always opens, and what it lost is said.

use std::collections::{BTreeMap, BTreeSet};

use tempfile::TempDir;

use super::super::sample::{agent, at, contents, filled};
use super::*;
use crate::store::verify;

/// Rows of each table.
type Held = BTreeMap<String, BTreeSet<String>>;

/// `TICKBIRD_DAMAGE_PLACES` asks for more, or fewer.
const PLACES: u64 = 500;
const PAGE: usize = 4_096;
const NOTHING: [&str; 0] = [];

/// Numbers by chance, the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("is below a usize")
    }
}

/// Everything that a start of the ledger and the pages of the API read.
fn reads(writer: &Writer) -> Result<(), StoreError> {
    let rows = writer.rows();
    rows.all_agents()?;
    rows.live_incidents(at(0))?;
    rows.told(at(0))?;
    rows.outbox_waiting()?;
    let filter = crate::store::FindingFilter { tenant: "default".into(), limit: 1_000, ..Default::default() };
    rows.findings(&filter).map(drop)
}

fn rows(held: &Held) -> usize {
    held.values().map(BTreeSet::len).sum()
}

struct Scene {
    room: TempDir,
    whole: Vec<u8>,
    had: Held,
}

impl Scene {
    fn new() -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("whole.db");
        filled(&path);
        Self { whole: fs::read(&path).expect("reads"), had: contents(&path), room }
    }

    /// Opens a store of these bytes; what is in it, and the report, if one was written.
    fn opens(&self, bytes: &[u8], what: &str) -> (Held, Option<Damage>) {
        let directory = tempfile::tempdir_in(self.room.path()).expect("a directory");
        let path = directory.path().join("store.db");
        fs::write(&path, bytes).expect("writes");
        let opened = open_sound(&path, at(9)).and_then(|writer| match reads(&writer) {
            // Whoever stumbles leaves the mark, and the collector opens its store anew.
            Err(error) if error.is_damage() => {
                drop(writer);
                suspect(&path, &error.in_full());
                open_sound(&path, at(10))
            }
            read => read.map(|()| writer),
        });
        let mut writer = opened.unwrap_or_else(|error| panic!("{what}: {}", error.in_full()));
        let damage = Aside::of(&path).newest();
        reads(&writer).unwrap_or_else(|error| panic!("{what}: {}", error.in_full()));
        let transaction = writer.transaction().expect("begins");
        transaction.prove_writable(at(9)).expect("writes");
        transaction.commit().expect("commits");
        writer.close().expect("closes");
        assert_eq!(check(&path).expect("reads"), NOTHING, "{what}");
        (contents(&path), damage)
    }
}

/// A copy of these bytes with a bit turned, some bytes turned, or the end cut off; and what was done, in words.
fn damaged(whole: &[u8], place: u64, chance: &mut Chance) -> (Vec<u8>, String) {
    let mut bytes = whole.to_vec();
    let at = chance.below(bytes.len());
    let what = match place % 4 {
        0 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        2 => {
            let turned = 1 + chance.below(64);
            bytes.iter_mut().skip(at).take(turned).for_each(|byte| *byte = !*byte);
            format!("{turned} bytes turned at {at}")
        }
        _ => {
            let bit = chance.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} turned at {at}")
        }
    };
    (bytes, what)
}

#[test]
fn a_store_that_is_damaged_at_hundreds_of_places_always_opens_says_what_it_lost_and_has_no_row_that_was_never_written()
{
    let scene = Scene::new();
    let places = std::env::var("TICKBIRD_DAMAGE_PLACES").ok().and_then(|it| it.parse().ok()).unwrap_or(PLACES);
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    let (mut found, mut kept_most) = (0, 0);
    for place in 0..places {
        let (bytes, what) = damaged(&scene.whole, place, &mut chance);
        let (has, damage) = scene.opens(&bytes, &what);
        found += u64::from(damage.is_some());
        for (table, had) in &scene.had {
            let foreign: Vec<&String> = has[table].difference(had).collect();
            assert!(foreign.is_empty(), "{what}: of {table}, and nobody wrote it: {foreign:?}");
            if has[table].len() == had.len() {
                continue;
            }
            let damage = damage.as_ref().unwrap_or_else(|| panic!("{what}: {table} lost rows, and nothing is said"));
            let left = damage.tables.iter().find(|it| it.table == *table).expect("each table is in the report");
            let (had, has) = (had.len() as u64, has[table].len() as u64);
            assert_eq!(left.kept, has, "{what}: {table}");
            assert!(matches!(left.lost, Lost::AtLeast(rows) if rows <= had - has), "{what}: {left:?}");
        }
        kept_most += u64::from(rows(&has) * 10 >= rows(&scene.had) * 9);
    }
    assert!(found * 3 > places, "most damage is seen: {found} of {places}");
    assert!(kept_most * 2 > places, "most of the rows are saved: {kept_most} of {places}");
}

#[test]
fn a_damaged_first_page_loses_everything_and_says_so() {
    let scene = Scene::new();
    let mut bytes = scene.whole.clone();
    bytes[..PAGE].fill(0x5a);
    let (has, damage) = scene.opens(&bytes, "the first page");
    assert_eq!(rows(&has), 0);
    let damage = damage.expect("it is said");
    assert!(damage.tables.iter().all(|it| it.lost != Lost::Nothing), "{damage:?}");
    let (_, damage) = scene.opens(&[], "an empty file");
    assert!(damage.expect("it is said").said.concat().contains("empty"));
}

#[test]
fn a_store_that_is_whole_is_left_alone() {
    let scene = Scene::new();
    let (has, damage) = scene.opens(&scene.whole, "whole");
    assert_eq!((has, damage), (scene.had.clone(), None));
}

#[test]
fn what_lies_behind_a_damaged_page_is_saved_and_the_damaged_files_are_set_aside() {
    let scene = Scene::new();
    let directory = tempfile::tempdir_in(scene.room.path()).expect("a directory");
    let path = directory.path().join("store.db");
    fs::write(&path, &scene.whole).expect("writes");
    // A leaf of the findings in the middle of them.
    let text = b"finding 300";
    let place = scene.whole.windows(text.len()).position(|it| it == text).expect("it is there") / PAGE * PAGE;
    let mut bytes = scene.whole.clone();
    bytes[place..place + PAGE].fill(0);
    fs::write(&path, &bytes).expect("writes");
    let writer = open_sound(&path, at(9)).expect("opens");
    let filter = crate::store::FindingFilter { tenant: "default".into(), limit: 1_000, ..Default::default() };
    let left: Vec<String> = writer.rows().findings(&filter).expect("reads").into_iter().map(|it| it.summary).collect();
    for there in ["finding 0", "finding 200", "finding 400", "finding 599"] {
        assert!(left.iter().any(|it| it == there), "{there} is on another page");
    }
    assert!(!left.iter().any(|it| it == "finding 300") && left.len() > 550, "{}", left.len());
    let damage = Aside::of(&path).newest().expect("it is said");
    assert!(damage.lost().starts_with("findings (at least ") && !damage.lost().contains("agents"), "{}", damage.lost());
    let aside = directory.path().join(&damage.set_aside).join("store.db");
    assert_eq!(fs::read(aside).expect("it is there"), bytes, "as it was");
    verify(&path).expect("the new one is whole");

    fs::rename(directory.path().join(ASIDE), directory.path().join("elsewhere")).expect("moves");
    assert_eq!(Aside::of(&path).newest(), None);
}

#[test]
fn a_repair_that_was_cut_short_is_brought_to_its_end() {
    let scene = Scene::new();
    for moved in 0..=1 {
        let directory = tempfile::tempdir_in(scene.room.path()).expect("a directory");
        let path = directory.path().join("store.db");
        let aside = directory.path().join(ASIDE).join("20261121T000000Z");
        fs::create_dir_all(&aside).expect("makes");
        fs::write(fresh(&path), &scene.whole).expect("writes");
        let damage =
            Damage { found_at: at(9), set_aside: "damaged/x".into(), said: vec![], transactions: 0, tables: vec![] };
        write_report(&aside.join(REPORT), &damage).expect("writes");
        // Killed before the old one was moved, or after.
        let old = if moved == 0 { path.clone() } else { aside.join("store.db") };
        fs::write(old, &scene.whole[..scene.whole.len() / 2]).expect("writes");
        fs::write(with_suffix(&path, "-wal"), b"of the old one").expect("writes");
        let writer = open_sound(&path, at(10)).expect("opens");
        let agents = writer.rows().all_agents().expect("reads").len();
        assert!(moved == 0 || agents == 120, "the new store is in the old one's place: {agents}");
        assert!(!fresh(&path).exists() && Aside::of(&path).newest().is_some());
        writer.close().expect("closes");
        assert_eq!(check(&path).expect("reads"), NOTHING);
    }
}

#[test]
fn a_store_somebody_suspects_is_read_whole_and_the_mark_goes() {
    let scene = Scene::new();
    let directory = tempfile::tempdir_in(scene.room.path()).expect("a directory");
    let path = directory.path().join("store.db");
    fs::write(&path, &scene.whole).expect("writes");
    suspect(&path, "a row");
    assert!(is_suspected(&path));
    open_sound(&path, at(9)).expect("opens").close().expect("closes");
    assert!(!is_suspected(&path), "it is whole after all");
}

#[test]
fn a_byte_turned_within_a_text_is_repaired_once_somebody_stumbled_over_it() {
    let scene = Scene::new();
    let text = b"finding 300";
    let place = scene.whole.windows(text.len()).position(|it| it == text).expect("it is there");
    let mut bytes = scene.whole.clone();
    bytes[place] |= 0x80;
    let (has, damage) = scene.opens(&bytes, "a text that is none");
    assert_eq!(has["findings"].len(), scene.had["findings"].len() - 1);
    let damage = damage.expect("it is said");
    assert!(damage.said == ["findings: 1 rows that do not match their checksums"], "{:?}", damage.said);
}

#[test]
fn a_store_that_may_not_be_read_is_no_damaged_one() {
    use rustix::process::geteuid;
    let scene = Scene::new();
    let directory = tempfile::tempdir_in(scene.room.path()).expect("a directory");
    let path = directory.path().join("store.db");
    // What is no file cannot be opened, by root neither.
    fs::create_dir(&path).expect("makes");
    let refused = open_sound(&path, at(9)).expect_err("cannot be opened");
    assert!(!refused.is_damage(), "{}", refused.in_full());
    if !geteuid().is_root() {
        let path = directory.path().join("other.db");
        fs::write(&path, &scene.whole).expect("writes");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("sets");
        assert!(!open_sound(&path, at(9)).expect_err("may not be read").is_damage());
    }
    assert_eq!(Aside::of(&path).newest(), None, "nothing is set aside");
}

#[test]
fn what_a_command_writes_into_a_damaged_store_is_in_the_repaired_one() {
    let scene = Scene::new();
    let directory = tempfile::tempdir_in(scene.room.path()).expect("a directory");
    let path = directory.path().join("store.db");
    fs::write(&path, &scene.whole).expect("writes");
    let mut command = Writer::open_beside(&path).expect("opens");
    let repairing = {
        let path = path.clone();
        std::thread::spawn(move || repair(&path, vec!["a page".into()], at(9)))
    };
    // Longer than a repair of so small a store takes: each reads it whole.
    let is_done = (0..20).any(|_| repairing.is_finished() || check(&path).is_err());
    assert!(!is_done, "it waits for the command");
    let transaction = command.transaction().expect("begins");
    transaction.put_agent(&agent(7_000)).expect("writes");
    transaction.commit().expect("commits");
    drop(command);
    repairing.join().expect("ends").expect("repairs");
    let after = Writer::open_beside(&path).expect("opens");
    let agents = after.rows().all_agents().expect("reads");
    assert!(agents.len() == 121 && agents.contains(&agent(7_000)), "{} agents", agents.len());
}

#[test]
fn a_command_that_comes_during_a_repair_is_refused_and_one_after_it_is_not() {
    let scene = Scene::new();
    let path = scene.room.path().join("whole.db");
    let turn = Turn::alone(&path).expect("asks").expect("nobody else is there");
    let refused = Writer::open_beside(&path).expect_err("it is being repaired");
    assert!(refused.to_string().contains("is being repaired; nothing was changed"), "{refused}");
    assert!(refused.advice().is_some_and(|it| it.contains("try again")));
    // The moment at which the old one has gone and the new one has not come.
    fs::rename(&path, scene.room.path().join("aside")).expect("moves");
    let refused = Writer::open_beside(&path).expect_err("it is being repaired");
    assert!(matches!(refused, StoreError::InRepair { .. }), "{refused}");
    fs::rename(scene.room.path().join("aside"), &path).expect("moves");
    drop(turn);
    // Commands do not refuse each other.
    let both = [Writer::open_beside(&path), Writer::open_beside(&path)];
    assert!(both.iter().all(Result::is_ok), "{both:?}");
    let nowhere = Writer::open_beside(&scene.room.path().join("none.db")).expect_err("there is none");
    assert!(matches!(nowhere, StoreError::Missing { .. }) && !scene.room.path().join("none.lock").exists());
}
