//! The simulated fleet against the shipped collector: whatever is repeated, reordered or broken off changes no sum.

use std::collections::BTreeMap;

use tickbird_fleet::{Conduct, Faults, Fleet, Report, identities};
use tickbird_tests::https::Connection;
use tickbird_tests::simulated::RECORDS as PATH;
use tickbird_tests::wait::throughout;
use tickbird_tests::{Collector, Seconds, Simulated, Stage, StageError, alone, until};

const AGENTS: usize = 40;
const RECORDS: usize = 5;
/// Before and after all connections drop.
const BATCHES: [u32; 2] = [30, 10];

fn failed(what: &str, error: &dyn std::error::Error) -> StageError {
    StageError::Failed { what: what.to_owned(), said: error.to_string() }
}

/// Requests of agents by the code of their answer.
fn answers(collector: &Collector) -> Result<BTreeMap<String, u64>, StageError> {
    let metrics = collector.get("/metrics")?.body;
    let of = |line: &str| {
        let (code, count) = line.strip_prefix("tickbird_ingest_requests_total{code=\"")?.split_once("\"} ")?;
        Some((code.to_owned(), count.trim().parse().ok()?))
    };
    Ok(metrics.lines().filter_map(of).collect())
}

async fn all_of_it(collector: &Collector) -> Result<Report, StageError> {
    let made = collector.command(&["token", "create", "--json", "--uses", &AGENTS.to_string()])?;
    let made: serde_json::Value = serde_json::from_str(&made).map_err(|error| failed("a token", &error))?;
    let token = made["token"].as_str().unwrap_or_default().parse().map_err(|error| failed("a token", &error))?;
    let people = format!("https://{}", collector.people());
    let enrolled = identities::enrol(&token, &people, AGENTS).await.map_err(|error| failed("enrolment", &error))?;
    let faults = Faults { repeated: 0.2, reordered: 0.2, cut: 0.2, half_open: 0.3, skewed: 0.2, skew: 3_600.s() };
    let conduct =
        Conduct { every: 1.s() / 5, records: RECORDS, findings: 20, sources: Some(4), faults, ..Conduct::default() };
    let mut fleet = Fleet::new(&enrolled, conduct).map_err(|error| failed("the fleet", &error))?;
    let mut reports = Vec::new();
    for batches in BATCHES {
        fleet.drop_all();
        fleet.greet(30.s()).await;
        fleet.send(batches, 60.s()).await;
        reports.push(fleet.take_report());
    }
    fleet.part(30.s()).await;
    reports.push(fleet.take_report());
    Ok(Report::of_all(reports))
}

#[test]
fn what_a_fleet_repeats_reorders_and_breaks_off_changes_no_sum() {
    alone(|stage: &Stage| {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(StageError::system("start a runtime"))?;
        let report = runtime.block_on(all_of_it(&collector))?;
        assert!(report.is_well() && report.connected == AGENTS, "{report:?}");
        let batches = AGENTS as u64 * u64::from(BATCHES.iter().sum::<u32>());
        assert_eq!(report.acknowledgements.len() as u64, batches);
        assert_eq!((report.records, report.refusals.len()), (batches * RECORDS as u64, 0), "{report:?}");
        assert_eq!((report.handshakes.len(), report.heartbeats), (2 * AGENTS, 3 * AGENTS as u64), "{report:?}");

        let did = |what: &str| *report.misdeeds.get(what).unwrap_or_else(|| panic!("nobody did: {what}; {report:?}"));
        let counted = |name: &str| collector.counted(&format!("tickbird_records_{name}"));
        let (repeats, sums) = (did("repeated") * RECORDS as u64, (counted("received")?, counted("committed")?));
        assert_eq!(sums, (report.records + repeats, report.records));
        assert_eq!((counted("duplicate")?, counted("refused")?), (repeats, 0));
        assert!(did("half open") >= 2);
        until("what was reordered and what broke off are answered as such", 10.s(), || {
            let found = answers(&collector).map_err(|error| error.to_string())?;
            let of = |code: &str| found.get(code).copied().unwrap_or_default();
            // Whoever left a second connection open has no third to break off on.
            let broken_off = of("cut") + of("too_many_connections");
            let is_so = of("gap") == did("reordered") && broken_off == did("cut") && of("cut") > 0;
            if is_so { Ok(()) } else { Err(format!("{found:?}, {:?}", report.misdeeds)) }
        })?;
        let all = collector.items("agents", "")?;
        let missing = all.iter().filter(|it| it["presence"] != "stopped").count();
        assert_eq!((all.len(), missing), (AGENTS, 0), "everybody said goodbye: {:?}", all.first());
        Ok(())
    });
}

/// A request to settle `body`, whole.
fn request(agent: &Simulated, body: &str) -> String {
    let length = body.len();
    format!("POST {PATH} HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n{body}", agent.address)
}

#[test]
fn a_connection_that_rests_goes_on_where_it_was() {
    alone(|stage: &Stage| {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        let agent = Simulated::enrolled(stage, &collector, collector.enrolment_token())?;
        let mut connection = agent.connect()?;
        // After a fifth of a second the collector keeps nothing of a connection but its session.
        let rests = || throughout("nothing is said", 2.s(), || Ok(()));
        let batch = |first| agent.batch("bulk", first, &[agent.summary("pool:shop")]).to_string();
        let mut through = 0;
        let mut is_taken = |connection: &mut Connection| {
            through += 1;
            let answer = connection.answer()?;
            assert_eq!((answer.status, answer.json()?["through"].as_u64()), (200, Some(through)), "{}", answer.body);
            Ok::<_, StageError>(())
        };
        connection.say(&request(&agent, &batch(1)))?;
        is_taken(&mut connection)?;
        rests()?;
        // A head that breaks off for as long; then a whole request with a part of the next one behind it.
        let (second, third, fourth) =
            (request(&agent, &batch(2)), request(&agent, &batch(3)), request(&agent, &batch(4)));
        connection.say(&second[..20])?;
        rests()?;
        connection.say(&second[20..])?;
        is_taken(&mut connection)?;
        connection.say(&format!("{third}{}", &fourth[..20]))?;
        is_taken(&mut connection)?;
        rests()?;
        connection.say(&fourth[20..])?;
        is_taken(&mut connection)?;
        assert_eq!(collector.counted("tickbird_records_committed")?, 4);
        Ok(())
    });
}
