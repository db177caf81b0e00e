//! What programs and people ask the collector, and what it answers to those who may not.

use serde_json::Value;
use tickbird_tests::agent::{User, app};
use tickbird_tests::https::Answer;
use tickbird_tests::{Agent, Application, Collector, Seconds, StageError, Watch, alone, until};

/// An error is a problem document: a stable code, what to do, and the id that the log line has too.
fn problem(answer: &Answer, status: u16) -> Result<Value, StageError> {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", answer.body);
    let problem = answer.json()?;
    for field in ["type", "title", "code", "detail", "request_id"] {
        assert!(problem[field].is_string(), "no `{field}` in {problem}");
    }
    assert_eq!(problem["status"], status);
    assert_eq!(problem["request_id"].as_str(), answer.header("x-request-id"));
    Ok(problem)
}

#[test]
fn only_the_state_of_health_is_told_without_a_token() {
    alone(|stage| {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        for path in ["/livez", "/readyz"] {
            let answer = collector.get_as(path, None)?;
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            assert!(answer.header("x-request-id").is_some());
        }
        for path in ["/v1/incidents", "/v1/findings", "/v1/agents", "/metrics"] {
            for token in [None, Some("wrong"), Some(collector.enrolment_token())] {
                let refused = problem(&collector.get_as(path, token)?, 401)?;
                assert!(!refused.to_string().contains("wrong"), "{refused}");
            }
            assert_eq!(collector.get(path)?.status, 200, "{path}");
        }
        let metrics = collector.get("/metrics")?;
        assert!(metrics.body.ends_with("# EOF\n"), "OpenMetrics ends with a line that says so: {}", metrics.body);
        problem(&collector.get("/v1/no-such-thing")?, 404)?;
        for query in
            ["limit=0", "limit=x", "limit=100000", "cursor=%00", "status=burning", "severity=bad", "nonsense=1"]
        {
            problem(&collector.get(&format!("/v1/incidents?{query}"))?, 400)?;
        }
        let made = collector.command(&["token", "create-api", "dashboard"])?;
        let token = made.split_whitespace().find(|word| word.len() >= 32).expect("the token is printed once");
        assert_eq!(collector.get_as("/v1/incidents", Some(token))?.status, 200);
        assert!(!collector.log().contains(collector.admin_token()), "no token in the log");
        let list = collector.command(&["token", "list", "--json"])?;
        assert!(list.contains(r#""kind":"api""#) && list.contains(r#""kind":"enrolment""#), "{list}");
        assert!(list.contains("dashboard") && !list.contains(token), "named, and not told: {list}");
        collector.command(&["token", "revoke", "dashboard"])?;
        problem(&collector.get_as("/v1/incidents", Some(token))?, 401)?;
        assert!(!collector.command(&["token", "list"])?.contains("dashboard"), "its name is free again");
        assert!(collector.command(&["token", "revoke", "dashboard"]).is_err(), "there is none any more");
        Ok(())
    });
}

#[test]
fn pages_follow_one_another_and_filters_hold() {
    alone(|stage| {
        let mut configuration = String::new();
        let mut shops = Vec::new();
        for name in ["first", "second", "third"] {
            let mut shop = Application::web(stage, name, 0)?;
            shop.does("limit 100")?;
            shop.does("descriptors 80")?;
            configuration += &app(name, &shop.command());
            shops.push(shop);
        }
        let watch = Watch::begin(stage, &configuration)?;
        for shop in &shops {
            watch.fires("fd.limit", &format!("process:{}", shop.name()), 30.s())?;
        }
        let mut seen = Vec::new();
        let mut path = "/v1/incidents?check=fd.limit&status=firing&limit=1".to_owned();
        loop {
            let page = watch.collector.get(&path)?.json()?;
            let items = page["items"].as_array().cloned().unwrap_or_default();
            assert!(items.len() <= 1, "{page}");
            seen.extend(items.iter().filter_map(|it| it["target"].as_str().map(str::to_owned)));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/incidents?check=fd.limit&status=firing&limit=1&cursor={next}");
        }
        seen.sort();
        let told = |name: &str| seen.iter().filter(|it| it.contains(name)).count();
        assert_eq!((seen.len(), told("first"), told("second"), told("third")), (3, 1, 1, 1), "{seen:?}");
        for query in ["status=resolved", "check=proc.gone", "agent=nobody"] {
            let found = watch.collector.items("incidents", query)?;
            assert!(found.iter().all(|it| it["check"] != "fd.limit"), "{query}: {found:?}");
        }
        Ok(())
    });
}

#[test]
fn an_agent_that_is_denied_is_cut_off_and_one_that_is_forgotten_is_gone() {
    alone(|stage| {
        let mut watch = Watch::begin(stage, "")?;
        let agents = watch.collector.items("agents", "")?;
        let id = agents[0]["id"].as_str().expect("an agent has an id").to_owned();
        assert!(watch.collector.command(&["agent", "list"])?.contains(&id));
        watch.collector.command(&["agent", "deny", &id])?;
        until("the agent hears that it is denied", 20.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let way = status["agent"]["collector"].clone();
            if way["error"].is_string() { Ok(()) } else { Err(way.to_string()) }
        })?;
        let agents = watch.collector.items("agents", "")?;
        assert_eq!(agents[0]["denied"], true, "{agents:?}");
        watch.agent.stop()?;
        watch.collector.command(&["agent", "forget", &id])?;
        until("it is gone", 10.s(), || {
            let agents = watch.collector.items("agents", "").map_err(|error| error.to_string())?;
            if agents.is_empty() { Ok(()) } else { Err(format!("{agents:?}")) }
        })
    });
}

#[test]
fn an_enrolment_token_is_good_for_as_many_agents_as_it_says() {
    alone(|stage| {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        let made = collector.command(&["token", "create", "--json", "--uses", "2", "--label", "team=grants"])?;
        let made: Value = serde_json::from_str(&made).expect("token create --json prints JSON");
        let token = made["token"].as_str().expect("the token itself");
        for _ in 0..2 {
            Agent::prepare(stage, "", User::Same)?.enrol_with(&collector, token)?;
        }
        let third = Agent::prepare(stage, "", User::Same)?;
        let refused = third.enrol_with(&collector, token).expect_err("it was used twice");
        assert!(!refused.to_string().contains(token), "{refused}");
        assert!(!collector.command(&["token", "list"])?.contains(token), "only its hash is kept");
        let agents = collector.items("agents", "")?;
        let labelled = agents.iter().filter(|it| it["labels"]["team"] == "grants").count();
        assert_eq!(labelled, 2, "the token's labels are the agents': {agents:?}");
        Ok(())
    });
}
