//! A collector's backup, made while it serves, and the collector that is made of it.

use std::path::Path;

use tickbird_tests::agent::{app, check};
use tickbird_tests::webhook::firing;
use tickbird_tests::{Application, Collector, Moody, Seconds, StageError, Watch, alone};

const CHECK: &str = "fd.limit";

fn text(path: &Path) -> &str {
    path.to_str().expect("the stage's paths are text")
}

#[test]
fn a_collector_made_of_a_backup_goes_on_with_its_agents_and_tells_nothing_twice() {
    alone(|stage| {
        // Something is always being written.
        let load = Moody::start()?;
        let mut shops = [Application::web(stage, "before", 0)?, Application::web(stage, "after", 0)?];
        let mut configuration = check("http.status", "hold = \"0s\"") + &load.endpoints(8);
        for shop in &mut shops {
            shop.does("limit 100")?;
            configuration += &app(shop.name(), &shop.command());
        }
        let mut watch = Watch::begin(stage, &configuration)?;
        for shop in &shops {
            watch.sees(CHECK, &format!("process:{}", shop.name()), "ok", 20.s())?;
        }
        shops[0].does("descriptors 80")?;
        watch.fires(CHECK, "process:before", 90.s())?;
        watch.webhook.hears("the incident", 30.s(), firing(CHECK))?;

        let backup = stage.room("backups")?.join("today");
        let made = watch.collector.command(&["backup", text(&backup), "--json"])?;
        let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
        assert_eq!(made["agents"], 1, "{made}");
        assert!(made["incidents"].as_u64() >= Some(1) && made["files"].to_string().contains("ca.key"), "{made}");
        let again = watch.collector.command(&["backup", text(&backup)]);
        assert!(again.is_err_and(|it| it.to_string().contains("is there already")), "nothing is overwritten");

        // What the backup does not know.
        shops[1].does("descriptors 80")?;
        watch.fires(CHECK, "process:after", 90.s())?;
        watch.collector.kill()?;
        std::fs::remove_dir_all(watch.collector.directory()).map_err(StageError::system("lose the collector"))?;

        watch.collector.command(&["restore", text(&backup)])?;
        watch.collector.serve()?;
        watch.fires(CHECK, "process:before", 5.s())?;
        // The agent says what the old store had and this one has not, and once more what still fires.
        watch.fires("agent.loss", "", 120.s())?;
        watch.fires(CHECK, "process:after", 120.s())?;
        shops[0].does("release")?;
        watch.resolves(CHECK, "process:before", 90.s())?;
        let told = watch.webhook.attempts();
        let of_before =
            |it: &&tickbird_tests::webhook::Message| firing(CHECK)(it) && it.body.contains("process:before");
        let mut ids: Vec<_> = told.iter().filter(of_before).map(|it| it.id.clone()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
        Ok(())
    });
}

#[test]
fn a_backup_that_is_not_what_it_was_is_refused_by_name_and_leaves_nothing_behind() {
    alone(|stage| {
        let collector = Collector::init(stage)?;
        let room = stage.room("backups")?;
        let (backup, target) = (room.join("today"), room.join("restored"));
        collector.command(&["backup", text(&backup)])?;
        let taken = collector.command(&["restore", text(&backup)]);
        assert!(taken.is_err_and(|it| it.to_string().contains("is there already")), "it is never overwritten");

        let restore = || collector.command_at(&target, &["restore", text(&backup)]);
        let refused = |word: &str| {
            let said = restore().expect_err("it must be refused").to_string();
            assert!(said.contains(word), "{said}");
            let left: Vec<_> = std::fs::read_dir(&room).expect("read").flatten().map(|it| it.file_name()).collect();
            assert_eq!(left, ["today"], "nothing is left behind");
        };
        let spoiled = |name: &str, spoil: &dyn Fn(&mut Vec<u8>), word: &str| {
            let path = backup.join(name);
            let whole = std::fs::read(&path).expect("read");
            let mut bytes = whole.clone();
            spoil(&mut bytes);
            std::fs::write(&path, bytes).expect("written");
            refused(word);
            std::fs::write(&path, whole).expect("written");
        };
        spoiled("store.db", &|it| it[5_000] ^= 1, "`store.db` has changed");
        spoiled("ca.key", &|it| it.truncate(10), "`ca.key` has changed");
        spoiled("backup.json", &|it| it.truncate(40), "is no backup");
        let newer =
            |it: &mut Vec<u8>| *it = String::from_utf8_lossy(it).replace("\"format\": 1", "\"format\": 9").into();
        spoiled("backup.json", &newer, "the backup has form 9");
        let elsewhere =
            |it: &mut Vec<u8>| *it = String::from_utf8_lossy(it).replace("\"ca.pem\"", "\"../ca.pem\"").into();
        spoiled("backup.json", &elsewhere, "is no backup");
        std::fs::rename(backup.join("server.key"), room.join("key")).expect("moved");
        let said = restore().expect_err("it must be refused").to_string();
        assert!(said.contains("`server.key` is missing"), "{said}");
        std::fs::rename(room.join("key"), backup.join("server.key")).expect("moved");
        restore()?;
        assert!(target.join("store.db").is_file() && target.join("ca.key").is_file());
        Ok(())
    });
}
