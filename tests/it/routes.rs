//! Routes: who is told of what, said beforehand by `route test`, and the end of it for whoever heard of its beginning.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{Message, firing, resolved};
use tickbird_tests::{Agent, Application, Clock, Collector, Seconds, StageError, Webhook, alone, shop};

/// Whatever is of HTTP goes to the archive besides; what is critical is the pager's, but of the till; everything else is the
/// desk's. The last one is needed: a node tells its own receiver only when none of its children matches.
const ROUTES: &str = r#"
[route]
receiver = "desk"
[[route.routes]]
receiver = "archive"
matchers = ['check=~"http\..*"']
continue = true
[[route.routes]]
receiver = "pager"
matchers = ['severity="critical"', 'target!~".*/till"']
[[route.routes]]
receiver = "desk"
"#;

fn led_to(collector: &Collector, labels: &[&str]) -> Result<Vec<String>, StageError> {
    let said = collector.command(&[&["route", "test", "--json"], labels].concat())?;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let names = said["receivers"].as_array().into_iter().flatten().filter_map(|it| it["receiver"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn of(kind: &'static str, part: String) -> impl Fn(&Message) -> bool {
    move |it| it.kind() == kind && it.check() == "http.status" && it.body.contains(&part)
}

#[test]
fn an_incident_goes_where_the_routes_lead_and_its_end_to_whoever_heard_of_it() {
    alone(|stage| {
        let names = ["desk", "archive", "pager"];
        let webhooks = [Webhook::start(stage)?, Webhook::start(stage)?, Webhook::start(stage)?];
        let [desk, archive, pager] = &webhooks;
        let mut collector = Collector::init(stage)?;
        for (name, webhook) in names.iter().zip(&webhooks) {
            collector.configure(&receiver(webhook).replace("\"ops\"", &format!("\"{name}\"")))?;
        }
        collector.configure(ROUTES)?;
        assert!(collector.command(&["route", "show"])?.contains("everything -> desk"));
        collector.serve()?;
        let (mut web, mut agent) = shop(stage, &collector, &["till", "shelf"])?;

        web.does("status 500")?;
        let (till, shelf) = (|| "/till".to_owned(), || "/shelf".to_owned());
        archive.hears("of the till", 60.s(), of("incident.firing", till()))?;
        archive.hears("of the shelf", 30.s(), of("incident.firing", shelf()))?;
        desk.hears("of the till", 30.s(), of("incident.firing", till()))?;
        pager.hears("of the shelf", 30.s(), of("incident.firing", shelf()))?;
        // What was said beforehand.
        let target = |path: &str| format!("target=endpoint:{}", web.page(path));
        let (check, severity) = ("check=http.status", "severity=critical");
        assert_eq!(led_to(&collector, &[check, severity, &target("till")])?, ["archive", "desk"]);
        assert_eq!(led_to(&collector, &[check, severity, &target("shelf")])?, ["archive", "pager"]);
        assert_eq!(led_to(&collector, &["check=pool.leak", "severity=warning"])?, ["desk"]);

        // From here on everything is the desk's, which hears of what it was not told of. Who heard that it fires hears that it is
        // over, whatever the routes are now.
        collector.stop()?;
        collector.rewrite("continue = true", "continue = false")?;
        collector.rewrite("receiver = \"archive\"", "receiver = \"desk\"")?;
        collector.serve()?;
        let late = desk.hears("of the shelf, which is its own now", 120.s(), of("incident.firing", shelf()))?;
        assert!(late.body.contains("it leads to the receiver now, by route.routes[0]"), "{}", late.body);
        web.does("status 200")?;
        for (webhook, part) in
            [(archive, till()), (archive, shelf()), (desk, till()), (desk, shelf()), (pager, shelf())]
        {
            webhook.hears("that it is over", 60.s(), of("incident.resolved", part))?;
        }
        let told = pager.attempts().into_iter().find(of_any(till()));
        assert!(told.is_none(), "no route led there: {told:?}");
        let twice = |part: String| desk.attempts().into_iter().filter(of("incident.firing", part)).count();
        assert_eq!((twice(till()), twice(shelf())), (1, 1), "a reload tells nothing again");
        agent.stop().map(drop)
    });
}

/// Any message about a target.
fn of_any(part: String) -> impl FnMut(&Message) -> bool {
    move |it| it.check() == "http.status" && it.body.contains(&part)
}

const DAY: i64 = 24 * 3600;

#[test]
fn a_route_that_is_mute_today_tells_tomorrow_what_still_fires() {
    alone(|stage| {
        let [desk, night] = [Webhook::start(stage)?, Webhook::start(stage)?];
        let mut collector = Collector::init(stage)?;
        let clock = Clock::right(collector.directory())?;
        clock.environment().into_iter().for_each(|(variable, value)| collector.knows(variable, value));
        // At noon of the collector's day, so that midnight is far.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        let until_noon = (DAY * 3 / 2 - now % DAY) % DAY;
        let steps = |seconds: i64| {
            [&desk, &night].iter().for_each(|it| it.is_ahead_by(seconds));
            clock.is_ahead_by(seconds)
        };
        steps(until_noon)?;
        // 1970 began on a Thursday.
        let today = ["thursday", "friday", "saturday", "sunday", "monday", "tuesday", "wednesday"]
            [((now + until_noon) / DAY % 7) as usize];
        for (name, webhook) in [("desk", &desk), ("night", &night)] {
            collector.configure(&receiver(webhook).replace("\"ops\"", &format!("\"{name}\"")))?;
        }
        collector.configure(&format!(
            "[[time_intervals]]\nname = \"today\"\n[[time_intervals.time_intervals]]\nweekdays = [\"{today}\"]\n\
             [route]\nreceiver = \"desk\"\n[[route.routes]]\nreceiver = \"night\"\ncontinue = true\n\
             mute_time_intervals = [\"today\"]\n[[route.routes]]\nreceiver = \"desk\"\n"
        ))?;
        // Of a week, the route is mute on one day.
        let mut silent = Vec::new();
        for day in 23..30 {
            let at = format!("2026-11-{day}T12:00:00Z");
            let said = collector.command(&["route", "test", "check=http.status", "--at", &at, "--json"])?;
            let said: Value = serde_json::from_str(&said).expect("JSON");
            let night = said["receivers"].as_array().into_iter().flatten().find(|it| it["receiver"] == "night");
            silent.extend(night.and_then(|it| it["silent"].as_str().map(str::to_owned)));
        }
        assert_eq!(silent, ["the time interval `today` mutes route.routes[0]"]);
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        desk.hears("of it", 60.s(), firing("http.status"))?;
        let found = collector.items("incidents", "check=http.status")?;
        let id = found.first().and_then(|it| it["id"].as_str()).expect("there is one").to_owned();
        let why = collector.command(&["explain", &id])?;
        assert!(why.contains("night not told of firing: the time interval `today` mutes route.routes[0]"), "{why}");
        assert!(night.attempts().iter().all(|it| it.check() != "http.status"));

        collector.kill()?;
        collector.serve()?;
        steps(until_noon + DAY)?;
        night.hears("of it on the next day", 60.s(), firing("http.status"))?;
        web.does("status 200")?;
        night.hears("that it is over", 60.s(), resolved("http.status"))?;
        desk.hears("that it is over", 60.s(), resolved("http.status"))?;
        agent.stop().map(drop)
    });
}

#[test]
fn routes_that_lead_nowhere_are_named_before_anything_is_served() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        collector.configure(
            "[route]\nreceiver = \"ops\"\n[[route.routes]]\nreceiver = \"nobody\"\nmatchers = [\"severity\"]\n",
        )?;
        let said = collector.command(&["check-config"]).expect_err("it must be refused").to_string();
        for mistake in
            ["route.routes[0].receiver: there is no receiver `nobody`", "route.routes[0].matchers: `severity`"]
        {
            assert!(said.contains(mistake), "{mistake}: {said}");
        }
        let said = collector.command(&["route", "test", "severity=loud"]).expect_err("it is none").to_string();
        assert!(said.contains("a severity is info, warning or critical"), "{said}");
        Ok(())
    });
}
