//! Through the real router, over a real store and ledger.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use axum::routing::post;
use http_body_util::BodyExt;
use serde_json::Value;
use tickbird_shared::{Change, Severity};
use tower::ServiceExt;

use super::*;
use crate::alert::Receiver;
use crate::pki::Validity;
use crate::pki::life::Life;
use crate::store::{UseRow, Writer};
use crate::testbed::{AGENT, Testbed, clock};
use crate::token;

/// A collector without listeners: the router and what stands behind it.
struct World {
    bed: Testbed,
    router: Router,
    viewer: String,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

impl World {
    fn new() -> Self {
        Self::with(Testbed::new(vec![Receiver::new("ops")]))
    }

    fn with(bed: Testbed) -> Self {
        let mut writer = Writer::open(&bed.store()).expect("opens");
        let transaction = writer.transaction().expect("begins");
        let (row, viewer) = token::api("test", "viewer", clock());
        transaction.add_api_token(&row).expect("adds");
        let (row, _) = token::api("odd", "owner", clock());
        transaction.add_api_token(&row).expect("adds");
        transaction.commit().expect("commits");
        let at = |text: &str| text.parse().expect("a time");
        let validity = Validity { begins: at("2026-01-01T00:00:00Z"), ends: at("2999-01-01T00:00:00Z") };
        let expiries = Kept { lives: vec![Life { name: "server", validity }], failure: None };
        let context = Context {
            readers: bed.readers.clone(),
            ledger: bed.ledger.clone(),
            route: watch::channel(None).1,
            notify: notify::Status::default(),
            metrics: Arc::new(Registry::default()),
            certificates: watch::channel(expiries).1,
            strain: watch::channel(None).1,
            clock,
            version: "0.1.0",
            started_at: clock(),
        };
        let enrolment = Router::new().route("/v1/enroll", post(async || "welcome"));
        Self { router: router(context, enrolment), bed, viewer }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let answered: Result<_, Infallible> = self.router.clone().oneshot(request).await;
        let (parts, body) = answered.expect("cannot fail").into_parts();
        let body = body.collect().await.expect("reads").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn ask(&self, method: Method, path: &str, token: Option<&str>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Body::empty()).expect("valid")).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, Some(&self.viewer)).await
    }

    /// The code of the problem that a request is answered with, after checking its form.
    async fn problem(&self, path: &str, status: u16) -> Value {
        let answer = self.get(path).await;
        assert_problem(&answer, status);
        answer.json()
    }
}

fn assert_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    for field in ["type", "title", "code", "detail", "request_id"] {
        assert!(problem[field].is_string(), "no {field}: {problem}");
    }
    assert_eq!(problem["status"], status);
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
}

#[tokio::test]
async fn without_a_token_only_health_is_told() {
    let world = World::new();
    for (method, path, permission, _) in ROUTES {
        let open = *permission == Permission::Anyone;
        assert_eq!(open, ["/livez", "/readyz"].contains(path), "{path}");
        let unknown = token::api("never stored", "admin", clock()).1;
        for token in [None, Some(""), Some("tba_"), Some(unknown.as_str())] {
            let answer = world.ask(method.clone(), path, token).await;
            if open {
                assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            } else {
                assert_problem(&answer, 401);
                assert!(answer.header("www-authenticate").starts_with("Bearer"));
            }
        }
        // Whoever may only look, looks: at what is there, and at nothing where the path names one thing.
        let expected = match *permission {
            Permission::AtLeast(least) if least > Role::Viewer => 403,
            _ if path.contains('{') => 404,
            _ => 200,
        };
        assert_eq!(world.ask(method.clone(), path, Some(&world.viewer)).await.status, expected, "{path}");
    }
    let basic = Request::get("/v1/agents").header("authorization", format!("Basic {}", world.viewer));
    assert_problem(&world.send(basic.body(Body::empty()).expect("valid")).await, 401);
}

#[tokio::test]
async fn a_role_that_is_not_known_allows_nothing() {
    let world = World::new();
    let mut writer = Writer::open(&world.bed.store()).expect("opens");
    let transaction = writer.transaction().expect("begins");
    let (row, odd) = token::api("odder", "root", clock());
    transaction.add_api_token(&row).expect("adds");
    transaction.commit().expect("commits");
    let answer = world.ask(Method::GET, "/v1/agents", Some(&odd)).await;
    assert_problem(&answer, 403);
    assert_eq!(answer.json()["code"], "forbidden");
}

#[tokio::test]
async fn every_error_is_a_problem_document_and_every_answer_is_careful() {
    let world = World::new();
    assert_eq!(world.problem("/v1/nothing", 404).await["code"], "not_found");
    let answer = world.ask(Method::DELETE, "/v1/incidents", Some(&world.viewer)).await;
    assert_problem(&answer, 405);
    assert_eq!((answer.json()["code"].as_str(), answer.header("allow")), (Some("method_not_allowed"), "GET,HEAD"));
    assert_problem(&world.ask(Method::GET, "/v1/enroll", None).await, 405);
    for answer in [world.get("/v1/incidents").await, world.get("/v1/nothing").await] {
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert!(answer.header("content-security-policy").contains("default-src 'none'"));
    }
    assert_eq!(world.ask(Method::POST, "/v1/enroll", None).await.body, "welcome");
    let head = world.ask(Method::HEAD, "/v1/incidents", Some(&world.viewer)).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn the_http_librarys_own_errors_are_named_too() {
    let world = World::new();
    let large = Router::new().route(
        "/v1/enroll",
        post(|body: axum::Json<Value>| async move { body }).layer(axum::extract::DefaultBodyLimit::max(10)),
    );
    let context = Context {
        readers: world.bed.readers.clone(),
        ledger: world.bed.ledger.clone(),
        route: watch::channel(None).1,
        notify: notify::Status::default(),
        metrics: Arc::new(Registry::default()),
        certificates: watch::channel(Kept::default()).1,
        strain: watch::channel(None).1,
        clock,
        version: "0.1.0",
        started_at: clock(),
    };
    let world = World { router: router(context, large), ..world };
    let post = |kind: &'static str, body: &'static str| {
        Request::post("/v1/enroll").header("content-type", kind).body(Body::from(body)).expect("valid")
    };
    for (request, status, code) in [
        (post("application/json", "{\"a\":\"0123456789\"}"), 413, "too_large"),
        (post("text/plain", "{}"), 415, "unsupported_media_type"),
        (post("application/json", "{"), 400, "malformed"),
    ] {
        let answer = world.send(request).await;
        assert_problem(&answer, status);
        assert_eq!(answer.json()["code"], code);
    }
}

#[tokio::test]
async fn a_request_keeps_its_id_when_it_is_harmless() {
    let world = World::new();
    let asked = |id: &str| Request::get("/livez").header("x-request-id", id).body(Body::empty()).expect("valid");
    assert_eq!(world.send(asked("checkout-42.b_c")).await.header("x-request-id"), "checkout-42.b_c");
    let long = "a".repeat(65);
    for id in ["a b", "<script>", "", &long] {
        let given = world.send(asked(id)).await.header("x-request-id").to_owned();
        assert!(given != id && given.len() == 26, "{given}");
    }
}

#[tokio::test]
async fn pages_cover_every_row_once_while_more_are_added() {
    let mut world = World::new();
    for number in 0..23 {
        world.bed.begins(&format!("pool:{number:02}")).await;
    }
    for list in ["incidents", "findings"] {
        let (mut seen, mut path) = (Vec::new(), format!("/v1/{list}?limit=5&check=pool.leak"));
        loop {
            let page = world.get(&path).await.json();
            let items = page["items"].as_array().expect("a list").clone();
            assert!(items.len() <= 5);
            seen.extend(items.iter().map(|it| it["target"].as_str().expect("text").to_owned()));
            // Somebody is paged while somebody reads.
            world.bed.begins(&format!("new:{list}:{}", seen.len())).await;
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/{list}?limit=5&check=pool.leak&cursor={next}");
        }
        let old: Vec<_> = seen.iter().filter(|it| it.starts_with("pool:")).cloned().collect();
        let expected: Vec<_> = (0..23).rev().map(|number| format!("pool:{number:02}")).collect();
        assert_eq!(old, expected, "{list}: newest first, each once");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
    }
    let exactly = world.get("/v1/findings?limit=500").await.json();
    assert_eq!(exactly["next"], Value::Null);
}

#[tokio::test]
async fn filters_hold_and_a_cursor_belongs_to_its_list() {
    let mut world = World::new();
    for number in 0..4 {
        world.bed.begins(&format!("pool:{number}")).await;
    }
    world.bed.finds("db.headroom", "db:shop", Severity::Critical, Change::Began).await;
    world.bed.finds("pool.keepalive", "pool:0", Severity::Info, Change::Began).await;
    world.bed.clears("pool:3").await;
    let count = async |path: &str| world.get(path).await.json()["items"].as_array().map_or(99, Vec::len);
    assert_eq!(count("/v1/incidents").await, 5);
    assert_eq!(count("/v1/incidents?status=firing").await, 4);
    assert_eq!(count("/v1/incidents?status=firing&severity=critical").await, 1);
    assert_eq!(count("/v1/incidents?check=pool.leak&status=resolved").await, 1);
    assert_eq!(count("/v1/incidents?agent=nobody").await, 0);
    assert_eq!(count(&format!("/v1/findings?agent={AGENT}")).await, 7);
    assert_eq!(count("/v1/findings?severity=info").await, 1);

    let next = world.get("/v1/incidents?limit=1").await.json()["next"].as_str().expect("more").to_owned();
    assert_eq!(world.get(&format!("/v1/incidents?limit=3&cursor={next}")).await.status, 200, "the limit may change");
    let mut tampered = next.clone();
    tampered.replace_range(4..5, if tampered.as_bytes()[4] == b'A' { "B" } else { "A" });
    for path in [
        format!("/v1/incidents?status=firing&cursor={next}"),
        format!("/v1/findings?cursor={next}"),
        format!("/v1/incidents?cursor={tampered}"),
        format!("/v1/incidents?cursor={}", &next[..next.len() - 2]),
        "/v1/incidents?cursor=%00".to_owned(),
    ] {
        assert_eq!(world.problem(&path, 400).await["code"], "bad_cursor", "{path}");
    }
}

#[tokio::test]
async fn a_parameter_that_is_wrong_or_unknown_is_named() {
    let world = World::new();
    for (path, code, names) in [
        ("/v1/incidents?limit=0", "bad_parameter", "limit"),
        ("/v1/incidents?limit=501", "bad_parameter", "limit"),
        ("/v1/incidents?limit=x", "bad_parameter", "limit"),
        ("/v1/incidents?status=burning", "bad_parameter", "firing, resolved"),
        ("/v1/findings?severity=bad", "bad_parameter", "info, warning, critical"),
        ("/v1/findings?check=a&check=b", "bad_parameter", "check"),
        ("/v1/agents?status=firing", "unknown_parameter", "status"),
        ("/livez?verbose", "unknown_parameter", "verbose"),
    ] {
        let problem = world.problem(path, 400).await;
        assert_eq!(problem["code"], code, "{path}");
        assert!(problem["detail"].as_str().is_some_and(|it| it.contains(names)), "{problem}");
    }
}

#[tokio::test]
async fn incidents_findings_and_agents_are_shown_as_documented() {
    let mut world = World::new();
    world.bed.begins("pool:shop").await;
    let incident = world.get("/v1/incidents").await.json()["items"][0].clone();
    assert_eq!((&incident["status"], &incident["occurrences"]), (&"firing".into(), &1.into()));
    assert_eq!(incident["agent"], serde_json::json!({ "id": AGENT, "host": "web-1", "labels": { "service": "shop" } }));
    assert_eq!(incident["evidence"], serde_json::json!({ "open": 20 }));
    let finding = world.get("/v1/findings").await.json()["items"][0].clone();
    assert_eq!((&finding["change"], &finding["incident"]), (&"began".into(), &incident["id"]));
    let agent = world.get("/v1/agents").await.json()["items"][0].clone();
    assert_eq!((&agent["id"], &agent["presence"], &agent["denied"]), (&AGENT.into(), &"live".into(), &false.into()));
    let mut keys: Vec<_> = incident.as_object().expect("an object").keys().cloned().collect();
    keys.sort();
    let expected = "acknowledged advice agent check evidence evidence_lost fingerprint flapping id occurrences opened_at priority \
                    resolved_at resolved_reason severity since status sub_key summary target updated_at";
    assert_eq!(keys.join(" "), expected);
}

#[tokio::test]
async fn an_operator_silences_what_matches_and_everybody_may_ask_why() {
    let mut world = World::new();
    let mut writer = Writer::open(&world.bed.store()).expect("opens");
    let transaction = writer.transaction().expect("begins");
    let (row, operator) = token::api("ona", "operator", clock());
    transaction.add_api_token(&row).expect("adds");
    transaction.commit().expect("commits");
    let post = async |path: &str, body: &str| {
        let request = Request::post(path).header("authorization", format!("Bearer {operator}"));
        world.send(request.body(Body::from(body.to_owned())).expect("valid")).await
    };
    let asked = r#"{"matchers": ["check=pool.leak"], "reason": "they move", "ends_at": "2999-01-01T00:00:00Z"}"#;
    let answer = post("/v1/silences", asked).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let silence = answer.json();
    assert_eq!((&silence["state"], &silence["author"]), (&"holds".into(), &"ona".into()), "the name of the token");
    let id = silence["id"].as_str().expect("an id").to_owned();

    for (body, words) in [
        ("{", "the body is no silence"),
        (r#"{"matchers": [], "reason": "x", "ends_at": "2999-01-01T00:00:00Z"}"#, "everything"),
        (r#"{"matchers": ["a=b"], "reason": " ", "ends_at": "2999-01-01T00:00:00Z"}"#, "`reason` has"),
        (r#"{"matchers": ["a=b"], "reason": "x", "ends_at": "1999-01-01T00:00:00Z"}"#, "before now"),
        (r#"{"matchers": ["a=b"], "reason": "x", "ends_at": "2999-01-01T00:00:00Z", "owner": "x"}"#, "owner"),
    ] {
        let answer = post("/v1/silences", body).await;
        assert_problem(&answer, 422);
        assert!(answer.json()["detail"].as_str().is_some_and(|it| it.contains(words)), "{}", answer.body);
    }
    assert_problem(&post("/v1/silences", &" ".repeat(200_000)).await, 413);

    world.bed.begins("pool:shop").await;
    let incident = world.get("/v1/incidents").await.json()["items"][0]["id"].as_str().expect("an id").to_owned();
    let explained = world.get(&format!("/v1/incidents/{incident}/explanation")).await.json();
    let reason = explained["decisions"][0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("silenced until 2999") && reason.contains("by ona: they move"), "{explained}");
    let listed = world.get("/v1/silences").await.json();
    assert_eq!(listed["items"], serde_json::json!([silence]));

    let end = format!("/v1/silences/{id}/end");
    assert_eq!(world.ask(Method::POST, &end, Some(&operator)).await.status, 200);
    assert_problem(&world.ask(Method::POST, &end, Some(&operator)).await, 404);
    assert_eq!(world.get("/v1/silences").await.json()["items"], serde_json::json!([]));
    assert_eq!(world.get("/v1/silences?ended=true").await.json()["items"][0]["state"], "ended");
    let explained = world.get(&format!("/v1/incidents/{incident}/explanation")).await.json();
    assert_eq!(explained["decisions"][1]["told"], true, "it is decided anew with the end: {explained}");
}

#[tokio::test]
async fn an_operator_takes_an_incident_and_gives_it_back_and_the_list_says_whose_it_is() {
    let mut world = World::new();
    let mut writer = Writer::open(&world.bed.store()).expect("opens");
    let transaction = writer.transaction().expect("begins");
    let (row, operator) = token::api("ona", "operator", clock());
    transaction.add_api_token(&row).expect("adds");
    transaction.commit().expect("commits");
    world.bed.begins("pool:shop").await;
    world.bed.begins("pool:till").await;
    let incident = world.get("/v1/incidents").await.json()["items"][1]["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/incidents/{incident}/acknowledgement");
    let ask = async |method: Method, path: &str, body: &str| {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {operator}"));
        world.send(request.body(Body::from(body.to_owned())).expect("valid")).await
    };
    for (body, words) in [
        ("{", "the body is no acknowledgement"),
        (r#"{"by": " "}"#, "`by` has"),
        (r#"{"for": "soon"}"#, "`for`: `soon` is not a duration"),
        (r#"{"for": "1h", "until": "2999-01-01T00:00:00Z"}"#, "two words for one thing"),
        (r#"{"until": "1999-01-01T00:00:00Z"}"#, "it would end before now"),
        (r#"{"owner": "x"}"#, "owner"),
    ] {
        let answer = ask(Method::POST, &path, body).await;
        assert_problem(&answer, 422);
        assert!(answer.json()["detail"].as_str().is_some_and(|it| it.contains(words)), "{}", answer.body);
    }
    assert_problem(&ask(Method::POST, &path, &" ".repeat(20_000)).await, 413);
    assert_eq!(ask(Method::POST, "/v1/incidents/01J/acknowledgement", "").await.json()["code"], "no_such_incident");
    assert_eq!(ask(Method::DELETE, &path, "").await.json()["code"], "no_such_acknowledgement");

    let answer = ask(Method::POST, &path, "").await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let said = answer.json();
    // Between the request and its commit a moment passes.
    let lasts = |of: &Value, hours: i64| {
        let at = |key: &str| of[key].as_str().expect("a time").parse::<Timestamp>().expect("a time");
        (hours * 3600 - 60..=hours * 3600).contains(&at("until").duration_since(at("at")).as_secs())
    };
    assert_eq!((&said["by"], &said["note"]), (&"ona".into(), &Value::Null), "the defaults");
    assert!(lasts(&said, 8), "{said}");
    // Somebody takes it over.
    let said = ask(Method::POST, &path, r#"{"by": "anna", "note": "rolling back", "for": "4h"}"#).await.json();
    assert!(said["by"] == "anna" && lasts(&said, 4), "{said}");
    let items = world.get("/v1/incidents").await.json()["items"].clone();
    assert_eq!((&items[1]["acknowledged"], &items[0]["acknowledged"]), (&said, &Value::Null));

    assert_eq!(ask(Method::DELETE, &path, "").await.status, 200);
    assert_problem(&ask(Method::DELETE, &path, "").await, 404);
    assert_eq!(world.get("/v1/incidents").await.json()["items"][1]["acknowledged"], Value::Null);
    let explained = world.get(&format!("/v1/incidents/{incident}/explanation")).await.json();
    let over: Vec<_> =
        explained["acknowledgements"].as_array().expect("a list").iter().map(|it| &it["over_why"]).collect();
    assert_eq!(over, ["anna took it over", "ona ended it"]);
    let kinds: Vec<_> = explained["decisions"].as_array().expect("a list").iter().map(|it| &it["kind"]).collect();
    assert_eq!(kinds, ["incident.firing", "incident.acknowledged", "incident.acknowledged", "incident.repeated"]);
    assert_eq!(explained["decisions"][3]["told"], true, "with the end and at once: {explained}");
    let timeline = explained["timeline"].as_array().expect("a list");
    let happened: Vec<_> =
        timeline.iter().map(|it| (it["what"].as_str().expect("a word"), it["index"].as_u64())).collect();
    let of = |what, index| (what, Some(index));
    let taken = [of("decided", 0), of("acknowledged", 0), of("decided", 1)];
    let over = [of("acknowledged", 1), of("decided", 2), of("acknowledgement_over", 1), of("decided", 3)];
    for it in taken.iter().chain(&over) {
        assert!(happened.contains(it), "{it:?} is not in {timeline:?}");
    }
    let at = |it: &Value| it["at"].as_str().expect("a time").parse::<Timestamp>().expect("a time");
    assert!(timeline.windows(2).all(|two| at(&two[0]) <= at(&two[1])), "{timeline:?}");

    world.bed.clears("pool:shop").await;
    let ask = async |method: Method, path: &str| world.ask(method, path, Some(&operator)).await;
    assert_problem(&ask(Method::POST, &path).await, 409);
}

#[tokio::test]
async fn metrics_are_open_metrics_with_the_levels_of_now() {
    let mut world = World::new();
    world.bed.begins("pool:shop").await;
    world.get("/v1/incidents").await;
    let answer = world.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    for line in [
        "tickbird_incidents_firing{severity=\"warning\"} 1",
        "tickbird_incidents_firing{severity=\"critical\"} 0",
        "tickbird_agents{presence=\"live\"} 1",
        "tickbird_ledger_waiting 0",
        "tickbird_ledger_places 1024",
        "tickbird_collector_info{version=\"0.1.0\"} 1",
        "tickbird_api_requests_total{path=\"/v1/incidents\",status=\"200\"} 1",
    ] {
        assert!(answer.body.lines().any(|it| it == line), "no `{line}` in\n{}", answer.body);
    }
    assert!(answer.body.ends_with("# EOF\n") && answer.body.matches("# EOF").count() == 1);
}

#[tokio::test]
async fn a_collector_that_cannot_keep_anything_is_not_ready() {
    let world = World::new();
    let ready = world.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"ok".into()), "{}", ready.body);
    world.bed.ledger.close().await;
    let closed = async {
        while world.get("/readyz").await.status == 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), closed).await.expect("it is noticed");
    let answer = world.get("/readyz").await;
    assert_eq!(answer.json()["parts"]["ledger"]["status"], "failed", "{}", answer.body);
    assert_problem(&world.get("/v1/agents").await, 503);
    assert_eq!(world.get("/v1/incidents").await.status, 200, "what is on the disk can still be read");
    assert_eq!(world.get("/livez").await.status, 200);
}

/// A disk that hangs keeps every query for ever; whoever asks whether we are ready must hear that, and not wait too.
#[tokio::test]
async fn a_store_that_does_not_answer_is_said_within_seconds() {
    let world = World::new();
    let hang = |_| {
        let ((release, held), readers) = (std::sync::mpsc::channel::<()>(), world.bed.readers.clone());
        // It ends when nobody can release it any more.
        let query = move |_: crate::store::Rows<'_>| Ok(held.recv().is_ok());
        (release, tokio::spawn(async move { readers.read(query).await }))
    };
    let (releases, queries): (Vec<_>, Vec<_>) = (0..4).map(hang).unzip();
    let told = async {
        loop {
            let answer = world.get("/readyz").await;
            if answer.status != 200 {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(std::time::Duration::from_secs(8), told).await.expect("it answers");
    let store = &answer.json()["parts"]["store"];
    assert_eq!((answer.status, &store["detail"]), (503, &"the store does not answer".into()), "{}", answer.body);
    drop(releases);
    for query in queries {
        query.await.expect("ends").expect("reads");
    }
    assert_eq!(world.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn the_fleet_shows_what_each_application_takes_of_each_server_page_by_page() {
    use tickbird_shared::Record;
    let mut world = World::new();
    assert_eq!(world.get("/v1/fleet/pools").await.json()["items"], serde_json::json!([]));
    let recorded = include_str!("../../../shared/testdata/wire/protocol-1-levels.json");
    let batch: tickbird_shared::Batch<'_> = serde_json::from_str(recorded).expect("reads");
    let Record::Levels(mut levels) = serde_json::from_str(batch.records[0].get()).expect("reads") else {
        panic!("levels are recorded");
    };
    levels.observed_at = clock();
    levels.left_out = 0;
    // The first look of a collector is at its first tick.
    world.bed.tells(levels).await;

    let (mut seen, mut path) = (Vec::new(), "/v1/fleet/pools?limit=2".to_owned());
    loop {
        let page = world.get(&path).await.json();
        seen.extend(page["items"].as_array().expect("a list").iter().cloned());
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/fleet/pools?limit=2&cursor={next}");
    }
    let named: Vec<_> = seen.iter().map(|it| it["application"].as_str().unwrap_or_default()).collect();
    assert_eq!(named, ["report.py", "grants-api", "billing-api"], "by server, then application");
    assert_eq!(seen[0]["possible"], serde_json::json!({ "at_least": 2, "at_most": null }));
    assert!(seen[0]["limit_not_known"].as_str().is_some_and(|it| it.contains("no limit")));
    let grants = &seen[1];
    assert_eq!(grants["server"]["id"], "system/7312345678901234567");
    assert_eq!(grants["server"]["slots"], 97);
    assert_eq!(grants["possible"], serde_json::json!({ "at_least": 120, "at_most": 120 }));
    assert_eq!((&grants["share_of_slots"], &grants["open"]), (&serde_json::json!(1.237), &serde_json::json!(41)));
    assert_eq!(grants["leased"], serde_json::json!({ "at_least": 3, "at_most": 41 }));

    let count = async |path: &str| world.get(path).await.json()["items"].as_array().map_or(99, Vec::len);
    assert_eq!(count("/v1/fleet/pools?application=grants-api").await, 1);
    assert_eq!(count("/v1/fleet/pools?server=10.0.0.6:5432").await, 1);
    assert_eq!(count("/v1/fleet/pools?server=system/7312345678901234567").await, 1);
    assert_eq!(count("/v1/fleet/pools?server=nowhere").await, 0);
    assert_eq!(world.problem("/v1/fleet/pools?cursor=%00", 400).await["code"], "bad_cursor");
}

#[tokio::test]
async fn the_report_says_what_was_used_what_went_wrong_and_what_would_do() {
    let mut world = World::new();
    let used = |application: &str, day: u64, looks: u32| UseRow {
        tenant: crate::testbed::TENANT.into(),
        server: "system/7312".into(),
        application: application.into(),
        day: clock() - std::time::Duration::from_secs(day * 24 * 3600),
        samples: u64::from(looks),
        peak: 12,
        peak_open: 20,
        counts: vec![(8, looks)],
    };
    let mut writer = Writer::open(&world.bed.store()).expect("opens");
    let transaction = writer.transaction().expect("begins");
    for row in [used("shop", 1, 90), used("shop", 3, 10), used("shop", 20, 500), used("billing", 2, 10)] {
        transaction.put_pool_use(&row).expect("writes");
    }
    transaction.commit().expect("commits");
    for target in ["pool:shop/web>10.0.0.5:5432/app?user=shop", "pool:search/web>10.0.0.5:5432", "endpoint:odd"] {
        world.bed.begins(target).await;
        world.bed.clears(target).await;
    }
    let report = world.get("/v1/reports/pools").await.json();
    let items = report["items"].as_array().expect("a list");
    let named: Vec<_> = items.iter().map(|it| it["application"].as_str().unwrap_or_default()).collect();
    assert_eq!(named, ["billing", "search", "shop"]);
    let shop = &items[2];
    let expected = serde_json::json!({
        "server": "system/7312", "samples": 100, "leased_p95": 8, "leased_peak": 12, "open_peak": 20, "suggested": 10,
    });
    assert_eq!(shop["servers"], serde_json::json!([expected]));
    let began = serde_json::json!({ "churn": 0, "leaks": 1, "left_in_transaction": 0, "waits": 0 });
    assert_eq!((&shop["faults_that_began"], &shop["days"]), (&began, &serde_json::json!(7)));
    assert_eq!(items[0]["servers"][0]["suggested"], Value::Null, "ten looks are too few");
    assert_eq!(items[1]["servers"], serde_json::json!([]));

    let month = world.get("/v1/reports/pools?days=30&application=shop").await.json();
    assert_eq!(month["items"][0]["servers"][0]["samples"], 600);
    let next = world.get("/v1/reports/pools?limit=1").await.json()["next"].as_str().expect("more").to_owned();
    let second = world.get(&format!("/v1/reports/pools?limit=1&cursor={next}")).await.json();
    assert_eq!(second["items"][0]["application"], "search");
    assert_eq!(world.problem("/v1/reports/pools?days=36", 400).await["parameter"], "days");
}
