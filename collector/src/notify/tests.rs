//! Against real sockets: a finding goes into a real ledger and store, a real HTTP server hears of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use tickbird_shared::{Change, Severity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::alert::{Explanation, Form, Receiver};
use crate::store::{MessageState, OutboxRow};
use crate::testbed::{Testbed, clock};

const SECRET: &str = "whsec_dGhlIHJlY2VpdmVyJ3Mgb3duIHNlY3JldCwgMzIgYnk=";
const KEY: &[u8] = b"the receiver's own secret, 32 by";
const DEADLINE: Duration = Duration::from_secs(20);

/// One request as the server read it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// `incident.firing pool:shop`
    fn title(&self) -> String {
        let body = self.json();
        format!("{} {}", body["type"].as_str().expect("text"), body["incident"]["target"].as_str().expect("text"))
    }
}

/// Reads one request; none when the connection ends before it is whole.
async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
        let request = Request { head, body: bytes[end + 4..].to_vec() };
        if request.body.len() == request.header("content-length").parse::<usize>().expect("a length") {
            return Some(request);
        }
    }
}

/// What the server does with each request, in turn; the last one is repeated.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Answer(&'static str),
    /// 413 to what begins, and 200 to everything else.
    RefusesTheBeginning,
    Silent,
    HangUp,
}

const OK: Manner = Manner::Answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
const BROKEN: Manner = Manner::Answer("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n");
const MOVED: Manner =
    Manner::Answer("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/T0KEN\r\ncontent-length: 0\r\n\r\n");
const LATER: Manner = Manner::Answer("HTTP/1.1 429 Too Many Requests\r\nretry-after: 77\r\ncontent-length: 0\r\n\r\n");
const TOO_LARGE: Manner = Manner::Answer("HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n");
const ENDLESS: Manner = Manner::Answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n");

struct Server {
    url: String,
    heard: mpsc::UnboundedReceiver<Request>,
    _task: JoinSet<()>,
}

async fn serve(manners: &'static [Manner]) -> Server {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    serve_on(socket, manners)
}

fn serve_on(socket: TcpListener, manners: &'static [Manner]) -> Server {
    let url = format!("http://{}/T0KEN?k=v", socket.local_addr().expect("has one"));
    let (hear, heard) = mpsc::unbounded_channel();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let next = AtomicUsize::new(0);
        let mut held = Vec::new();
        loop {
            let Ok((mut stream, _)) = socket.accept().await else { return };
            let Some(request) = read_request(&mut stream).await else { continue };
            let manner = match manners[next.fetch_add(1, Ordering::Relaxed).min(manners.len() - 1)] {
                Manner::RefusesTheBeginning if request.title().starts_with("incident.firing") => TOO_LARGE,
                Manner::RefusesTheBeginning => OK,
                other => other,
            };
            // The test may have heard enough.
            let _ = hear.send(request);
            if let Manner::Answer(answer) = manner {
                stream.write_all(answer.as_bytes()).await.expect("writes");
            }
            if !matches!(manner, Manner::HangUp) {
                held.push(stream);
            }
        }
    });
    Server { url, heard, _task: task }
}

impl Server {
    async fn hears(&mut self) -> Request {
        tokio::time::timeout(DEADLINE, self.heard.recv()).await.expect("in time").expect("the server runs")
    }

    fn config(&self) -> webhook::Config {
        webhook::Config::new(&self.url, Some(SECRET), &Trust::default()).expect("valid")
    }
}

async fn attempt(manners: &'static [Manner]) -> (Result<u16, NotifyError>, Request) {
    let mut server = serve(manners).await;
    let config = server.config().within(Duration::from_millis(400));
    let result = config.send("msg_1", clock(), b"{\"a\":1}").await;
    (result, server.hears().await)
}

/// HMAC-SHA-256 as RFC 2104 writes it down, sharing nothing with the code under test but the hash.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn assert_signed(request: &Request) {
    use base64::Engine;
    let mut text = format!("{}.{}.", request.header("webhook-id"), request.header("webhook-timestamp")).into_bytes();
    text.extend(&request.body);
    let expected = base64::engine::general_purpose::STANDARD.encode(hmac(KEY, &text));
    assert_eq!(request.header("webhook-signature"), format!("v1,{expected}"));
}

#[tokio::test]
async fn what_the_receiver_hears_is_signed_over_the_bytes_it_hears() {
    let (result, request) = attempt(&[OK]).await;
    result.expect("taken");
    assert!(request.head.starts_with("POST /T0KEN?k=v HTTP/1.1\r\n"), "{}", request.head);
    assert_eq!((request.header("content-type"), request.header("webhook-id")), ("application/json", "msg_1"));
    assert_eq!(request.body, b"{\"a\":1}");
    assert_signed(&request);
}

#[tokio::test]
async fn each_failure_knows_whether_it_was_heard_and_says_no_secret() {
    let of = |result: Result<u16, NotifyError>| {
        let error = result.expect_err("must fail");
        let text = error.chain();
        assert!(!text.contains("T0KEN") && !text.contains("whsec"), "{text}");
        (text, error.is_uncertain())
    };
    assert_eq!(of(attempt(&[BROKEN]).await.0), ("answered 500".into(), true));
    assert_eq!(of(attempt(&[MOVED]).await.0), ("answered 302; redirects are not followed".into(), false));
    assert_eq!(of(attempt(&[Manner::Silent]).await.0), ("no answer within 400 ms".into(), true));
    let (text, uncertain) = of(attempt(&[Manner::HangUp]).await.0);
    assert!(text.starts_with("the connection ended before the answer") && uncertain, "{text}");
    let later = attempt(&[LATER]).await.0.expect_err("must fail");
    assert_eq!((later.retry_after(), later.is_uncertain()), (Some(Duration::from_secs(77)), false));

    // A port that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("has one");
    let config = webhook::Config::new(&format!("http://{free}/T0KEN"), None, &Trust::default()).expect("valid");
    let (text, uncertain) = of(config.send("msg_1", clock(), b"{}").await);
    assert!(text.starts_with(&format!("cannot connect to {free}: Connection refused")) && !uncertain, "{text}");

    // One that takes connections and never speaks TLS.
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("https://{}/T0KEN", mute.local_addr().expect("has one"));
    let config = webhook::Config::new(&url, None, &Trust::default()).expect("valid").within(Duration::from_millis(200));
    assert_eq!(of(config.send("msg_1", clock(), b"{}").await), ("no answer within 200 ms".into(), false));
}

#[tokio::test]
async fn a_yes_counts_even_if_the_answer_never_ends() {
    let (result, _) = attempt(&[ENDLESS]).await;
    result.expect("the status was said");
}

#[tokio::test]
async fn a_message_of_several_requests_is_not_waited_for_by_a_stop() {
    let mut server = serve(&[OK]).await;
    let destination = Destination::Alertmanager(server.config(), Duration::from_secs(60));
    let send = |is_over: bool| {
        let destination = destination.clone();
        async move { destination.send("msg_1", clock(), b"[1]\n[2]\n[3]", &move || is_over).await }
    };
    let stopped = send(true).await.expect_err("is not whole");
    assert_eq!(stopped.chain(), "took a part of it: the collector did not wait for the rest");
    assert!(stopped.is_uncertain() && !stopped.is_about_the_message());
    assert_eq!(server.hears().await.body, b"[1]", "one request is made all the same");
    assert!(server.heard.try_recv().is_err());
    send(false).await.expect("taken");
    for part in [b"[1]", b"[2]", b"[3]"] {
        assert_eq!(server.hears().await.body, part);
    }
}

#[tokio::test]
async fn tls_is_checked_against_the_given_authority_only() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("makes one");
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("has them")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("fits");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("https://{}/hook", socket.local_addr().expect("has one"));
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.expect("accepts");
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let pem = made.cert.pem();
    let authority = Trust { authorities: Some(pem.as_bytes()), ..Trust::default() };
    let trusting = webhook::Config::new(&url, None, &authority).expect("valid");
    trusting.send("msg_1", clock(), b"{}").await.expect("taken");
    let public_only = webhook::Config::new(&url, None, &Trust::default()).expect("valid");
    let error = public_only.send("msg_1", clock(), b"{}").await.expect_err("not trusted");
    assert!(error.chain().contains("UnknownIssuer") || error.chain().contains("certificate"), "{}", error.chain());
    assert!(!error.is_uncertain());
}

fn deliver(bed: &Testbed, server: &Server) -> Running {
    let receivers = vec![("ops".to_owned(), Destination::Webhook(server.config().within(Duration::from_millis(400))))];
    start(Config { receivers, clock }, bed.readers.clone(), bed.ledger.clone())
}

fn ops() -> Vec<Receiver> {
    vec![Receiver::new("ops")]
}

fn states(messages: &[OutboxRow]) -> Vec<(String, MessageState, u32, u32)> {
    messages.iter().map(|it| (it.kind.clone(), it.state, it.attempts, it.uncertain)).collect()
}

#[tokio::test]
async fn a_message_is_repeated_with_the_same_bytes_until_it_is_taken() {
    let mut server = serve(&[BROKEN, Manner::Silent, OK]).await;
    let mut bed = Testbed::new(ops());
    let notify = deliver(&bed, &server);
    bed.begins("pool:shop").await;
    let (first, second, third) = (server.hears().await, server.hears().await, server.hears().await);
    for request in [&first, &second, &third] {
        assert_signed(request);
        assert_eq!((&request.body, request.header("webhook-id")), (&first.body, first.header("webhook-id")));
    }
    let messages = bed.is_drained().await;
    assert_eq!(states(&messages), [("incident.firing".to_owned(), MessageState::Delivered, 3, 2)]);
    let incident = messages[0].incident.clone();
    let explain = move |rows: crate::store::Rows<'_>| Explanation::read(rows, crate::testbed::TENANT, &incident, None);
    let explained = bed.readers.read(explain).await.expect("reads").expect("is there").document();
    let told = &explained["decisions"][0]["message"];
    assert_eq!((&told["answer"], &told["last_error"]), (&"answered 200".into(), &serde_json::Value::Null), "{told}");
    assert_eq!(told["failures"], serde_json::json!(["answered 500", "no answer within 400 ms"]), "{told}");
    assert_eq!((first.json()["id"].as_str(), &first.body), (Some(messages[0].id.as_str()), &messages[0].body));
    // What an attempt came to is shown after it is stored; at the end all of it is.
    let shown = notify.status();
    notify.stop().await;
    let status = shown.receivers().remove(0);
    assert_eq!((status.failures, status.last_error), (0, None));
}

/// Who is killed between the receiver's answer and the note of it tells it again: that is counted before anything is said.
#[tokio::test]
async fn an_attempt_is_counted_as_uncertain_before_it_is_made_and_as_what_it_was_afterwards() {
    let mut server = serve(&[Manner::Silent, OK]).await;
    let mut bed = Testbed::new(ops());
    let notify = deliver(&bed, &server);
    bed.begins("pool:shop").await;
    server.hears().await;
    let under_way = states(&bed.outbox().await);
    assert_eq!(under_way, [("incident.firing".to_owned(), MessageState::Waiting, 1, 1)]);
    let messages = bed.is_drained().await;
    let told = ("incident.firing".to_owned(), MessageState::Delivered, 2, 1);
    assert_eq!(states(&messages), [told], "of the one without an answer nobody knows, of the other everybody");
    notify.stop().await;
}

#[tokio::test]
async fn one_incident_is_told_in_order_and_many_at_once() {
    let mut server = serve(&[OK]).await;
    let mut bed = Testbed::new(ops());
    let notify = deliver(&bed, &server);
    for number in 0..20 {
        bed.begins(&format!("pool:{number}")).await;
    }
    bed.is_drained().await;
    for number in 0..20 {
        bed.finds("pool.leak", &format!("pool:{number}"), Severity::Critical, Change::Worsened).await;
        bed.clears(&format!("pool:{number}")).await;
    }
    bed.is_drained().await;
    notify.stop().await;
    let mut told = std::collections::BTreeMap::<String, Vec<String>>::new();
    while let Ok(request) = server.heard.try_recv() {
        let (kind, target) = request.title().split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("two");
        told.entry(target).or_default().push(kind);
    }
    assert_eq!(told.len(), 20);
    for kinds in told.values() {
        // A telling that had not begun when the fault was over is left out; the resolve never is.
        let whole = ["incident.firing", "incident.worsened", "incident.resolved"];
        assert!(*kinds == whole || *kinds == [whole[0], whole[2]], "{kinds:?}");
    }
}

#[tokio::test]
async fn what_was_decided_before_a_restart_is_delivered_after_it_byte_for_byte() {
    let mut bed = Testbed::new(ops());
    bed.begins("pool:shop").await;
    let before = bed.outbox().await;
    assert_eq!(before.len(), 1);
    let mut bed = bed.restart(ops()).await;
    let mut server = serve(&[OK]).await;
    let notify = deliver(&bed, &server);
    let heard = server.hears().await;
    assert_eq!((heard.body.clone(), heard.header("webhook-id")), (before[0].body.clone(), before[0].id.as_str()));
    bed.is_drained().await;
    // Whoever was told before the restart hears the end after it.
    bed.clears("pool:shop").await;
    assert_eq!(server.hears().await.title(), "incident.resolved pool:shop");
    bed.is_drained().await;
    notify.stop().await;
}

#[tokio::test]
async fn a_fault_that_came_and_went_while_nobody_was_reached_is_told_as_over() {
    let mut bed = Testbed::new(ops());
    bed.begins("pool:shop").await;
    bed.clears("pool:shop").await;
    let mut server = serve(&[OK]).await;
    let notify = deliver(&bed, &server);
    assert_eq!(server.hears().await.title(), "incident.resolved pool:shop");
    let messages = bed.is_drained().await;
    assert_eq!(
        states(&messages),
        [
            ("incident.firing".to_owned(), MessageState::Superseded, 0, 0),
            ("incident.resolved".to_owned(), MessageState::Delivered, 1, 0),
        ]
    );
    notify.stop().await;
}

#[tokio::test]
async fn a_receiver_that_is_away_is_asked_less_and_less_and_hears_all_when_it_is_back() {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("has one");
    let gone = Server { url: format!("http://{address}/"), heard: mpsc::unbounded_channel().1, _task: JoinSet::new() };
    drop(socket);
    let mut bed = Testbed::new(ops());
    let notify = deliver(&bed, &gone);
    for number in 0..8 {
        bed.begins(&format!("pool:{number}")).await;
    }
    let opened = async {
        while notify.status().receivers()[0].breaker == BreakerState::Closed {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, opened).await.expect("the breaker opens");
    let status = notify.status().receivers().remove(0);
    let error = status.last_error.expect("an error");
    assert_eq!(status.is_away, Some(true));
    assert!(error.starts_with(&format!("cannot connect to {address}")), "{error}");
    let mut server = serve_on(TcpListener::bind(address).await.expect("binds again"), &[OK]);
    let mut told = std::collections::BTreeSet::new();
    while told.len() < 8 {
        assert!(told.insert(server.hears().await.title()), "told twice");
    }
    let messages = bed.is_drained().await;
    assert!(messages.iter().all(|it| it.uncertain == 0), "nobody can have heard what failed: {messages:?}");
    let status = notify.status().receivers().remove(0);
    assert_eq!((status.failures, status.is_away), (0, Some(false)));
    notify.stop().await;
}

/// After a start nobody knows how a receiver is until it was asked, and nobody needs one that nothing waits for.
#[tokio::test]
async fn a_receiver_is_away_or_not_only_once_it_was_asked_or_nothing_waits_for_it() {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("has one");
    let gone = Server { url: format!("http://{address}/"), heard: mpsc::unbounded_channel().1, _task: JoinSet::new() };
    drop(socket);
    let mut bed = Testbed::new(ops());
    let notify = deliver(&bed, &gone);
    let shows = async |notify: &Running, wanted: Option<bool>, failures: u32| {
        let shown = async {
            loop {
                let status = notify.status().receivers().remove(0);
                if (status.is_away, status.failures) == (wanted, failures) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, shown).await.expect("in time");
    };
    assert_eq!(notify.status().receivers()[0].is_away, None, "not even looked whether something waits");
    shows(&notify, Some(false), 0).await;
    bed.begins("pool:shop").await;
    shows(&notify, None, 1).await;
    shows(&notify, Some(true), 5).await;
    notify.stop().await;
    let bed = bed.restart(ops()).await;
    let notify = deliver(&bed, &gone);
    shows(&notify, None, 0).await;
    shows(&notify, None, 1).await;
    notify.stop().await;
}

#[tokio::test]
async fn a_message_that_is_refused_for_what_it_is_does_not_stop_the_others() {
    const REFUSED: Manner = Manner::Answer("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let mut server = serve(&[REFUSED]).await;
    let mut bed = Testbed::new(ops());
    let notify = deliver(&bed, &server);
    for number in 0..6 {
        bed.begins(&format!("pool:{number}")).await;
    }
    // Some may be repeated before the last one is tried the first time.
    let mut tried = std::collections::BTreeSet::new();
    while tried.len() < 6 {
        tried.insert(server.hears().await.header("webhook-id").to_owned());
    }
    assert_eq!(notify.status().receivers()[0].breaker, BreakerState::Closed);
    notify.stop().await;
    assert!(bed.outbox().await.iter().all(|it| it.state == MessageState::Waiting && it.attempts >= 1));
}

/// One hung server must not keep a reload, and with it every other receiver, waiting.
#[tokio::test]
async fn a_reload_ends_nothing_of_receivers_that_stay_and_of_others_only_after_their_attempts() {
    let (mut hung, mut well, mut other) = (serve(&[Manner::Silent]).await, serve(&[OK]).await, serve(&[OK]).await);
    let mut bed = Testbed::new(vec![Receiver::new("hung"), Receiver::new("well")]);
    let to = |server: &Server| Destination::Webhook(server.config().within(Duration::from_secs(60)));
    let of = |receivers: &[(&str, &Server)]| Config {
        receivers: receivers.iter().map(|(name, server)| ((*name).to_owned(), to(server))).collect(),
        clock,
    };
    let mut notify = start(of(&[("hung", &hung), ("well", &well)]), bed.readers.clone(), bed.ledger.clone());
    bed.begins("pool:one").await;
    let first = hung.hears().await.header("webhook-id").to_owned();
    well.hears().await;

    // In another order, and with another one.
    notify.reload(of(&[("new", &other), ("well", &well), ("hung", &hung)]));
    bed.begins("pool:two").await;
    assert_eq!(well.hears().await.title(), "incident.firing pool:two");
    assert_eq!(hung.hears().await.title(), "incident.firing pool:two", "beside the attempt that is under way");
    let shown: Vec<_> =
        notify.status().receivers().into_iter().map(|it| (it.name, it.delivered_at.is_some())).collect();
    assert_eq!(shown, [("new".to_owned(), false), ("well".to_owned(), true), ("hung".to_owned(), false)]);

    // It is elsewhere now: whoever may hear it there hears it only when it is known that nobody hears it here.
    notify.reload(of(&[("hung", &other), ("well", &well)]));
    bed.begins("pool:three").await;
    assert_eq!(well.hears().await.title(), "incident.firing pool:three");
    assert!(other.heard.try_recv().is_err() && hung.heard.try_recv().is_err());
    a_minute_passes().await;
    assert_eq!(other.hears().await.title(), "incident.firing pool:three");
    // What was tried before waits by a clock that did not take part in that minute.
    a_minute_passes().await;
    let mut told = std::collections::BTreeSet::new();
    while told.len() < 2 {
        told.insert(other.hears().await.header("webhook-id").to_owned());
    }
    assert!(told.contains(&first), "{told:?}");
    let messages = bed.is_drained().await;
    assert!(messages.iter().all(|it| it.state == MessageState::Delivered), "{messages:?}");
    notify.stop().await;
}

/// Lets more than a minute pass for everything here that waits.
async fn a_minute_passes() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
}

/// A gateway that finds a message too large would hold up everything that is told of the same incident for a week.
#[tokio::test]
async fn what_is_refused_for_what_it_is_is_given_up_and_what_comes_after_it_is_told() {
    let mut server = serve(&[Manner::RefusesTheBeginning]).await;
    let mut bed = Testbed::new(ops());
    // Minutes pass here while an attempt is under way.
    let receivers = vec![("ops".to_owned(), Destination::Webhook(server.config().within(10 * DEADLINE * 60)))];
    let notify = start(Config { receivers, clock }, bed.readers.clone(), bed.ledger.clone());
    bed.begins("pool:shop").await;
    let id = server.hears().await.header("webhook-id").to_owned();
    bed.finds("pool.leak", "pool:shop", Severity::Critical, Change::Worsened).await;
    let refused = async |bed: &Testbed| {
        let messages = bed.outbox().await;
        messages.into_iter().find(|it| it.id == id).expect("is there")
    };
    let mut attempts = 1;
    while refused(&bed).await.state == MessageState::Waiting && attempts < 20 {
        a_minute_passes().await;
        let heard = server.hears().await;
        if heard.header("webhook-id") != id {
            break;
        }
        attempts += 1;
    }
    let given_up = refused(&bed).await;
    assert_eq!((given_up.state, given_up.last_error()), (MessageState::Dead, Some("answered 413")));
    assert!((5..9).contains(&given_up.attempts) && given_up.uncertain == 0, "{given_up:?}");
    assert_eq!(notify.status().receivers()[0].breaker, BreakerState::Closed);
    // Who may have heard of it by another way, and who did not, hears the end.
    bed.clears("pool:shop").await;
    let mut told = vec![server.hears().await.title()];
    while told.last().is_some_and(|it| it != "incident.resolved pool:shop") {
        told.push(server.hears().await.title());
    }
    assert!(told.iter().all(|it| it != "incident.firing pool:shop"), "{told:?}");
    // That it was given up is told to it, too, and refused like any beginning.
    let is_of_it = |it: &OutboxRow| it.body.windows(18).any(|word| word == b"notify.dead_letter");
    let drained = async {
        while bed.outbox().await.iter().any(|it| it.state == MessageState::Waiting && !is_of_it(it)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), drained).await.expect("nothing else waits");
    notify.stop().await;
}

/// Whoever edits the configuration and starts anew is not asked, as a reload would be.
#[tokio::test]
async fn what_was_written_for_another_kind_of_receiver_is_given_up_and_what_is_decided_since_is_told() {
    let mut server = serve(&[OK]).await;
    let mut bed = Testbed::new(ops());
    bed.begins("pool:shop").await;
    let mut bed = bed.restart(vec![Receiver { form: Form::Slack, ..Receiver::new("ops") }]).await;
    let receivers = vec![("ops".to_owned(), Destination::Chat(server.config().within(10 * DEADLINE * 60)))];
    let notify = start(Config { receivers, clock }, bed.readers.clone(), bed.ledger.clone());
    let old = async |bed: &Testbed| {
        let messages = bed.outbox().await;
        messages.into_iter().find(|it| it.form.as_deref() == Some("webhook")).expect("is there")
    };
    let given_up = async {
        while old(&bed).await.state == MessageState::Waiting {
            a_minute_passes().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(7_200), given_up).await.expect("it is given up");
    let given_up = old(&bed).await;
    let why = "the message was written for a receiver of the kind `webhook`, and this one is `slack` now";
    assert_eq!((given_up.state, given_up.last_error()), (MessageState::Dead, Some(why)));
    assert!(given_up.attempts >= 5 && given_up.uncertain == 0, "{given_up:?}");
    bed.clears("pool:shop").await;
    let over = async {
        loop {
            let heard = server.hears().await;
            let said = heard.json();
            assert!(said.get("version").is_none() && said.get("attachments").is_some(), "{said}");
            if said["text"] == "[RESOLVED] warning *pool.leak* of pool:shop on web-1" {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), over).await.expect("its end is told");
    notify.stop().await;
}

#[tokio::test]
async fn messages_to_a_receiver_that_is_configured_no_more_wait_out_their_time() {
    let mut bed = Testbed::new(vec![Receiver::new("old")]);
    bed.begins("pool:shop").await;
    let readers = bed.readers.clone();
    let find = |before: Timestamp| {
        let readers = readers.clone();
        async move { readers.read(move |rows| rows.outbox_strays(&["ops".into()], before, 9)).await.expect("reads") }
    };
    assert_eq!(find(clock().saturating_sub(Duration::from_secs(60)).expect("in range")).await.len(), 0);
    assert_eq!(find(clock()).await.len(), 1);
    // A week from now, without it in the configuration.
    let bed = bed.restart(Vec::new()).await;
    let later = || clock().saturating_add(retry::GIVE_UP).expect("in range");
    let notify = start(Config { receivers: Vec::new(), clock: later }, bed.readers.clone(), bed.ledger.clone());
    let messages = bed.is_drained().await;
    assert_eq!(
        (messages[0].state, messages[0].last_error()),
        (MessageState::Dead, Some("the receiver is not configured"))
    );
    notify.stop().await;
}

/// A server that asks for a certificate and is called otherwise than it is reached.
#[tokio::test]
async fn a_certificate_is_shown_to_who_asks_and_another_name_is_believed_where_it_is_given() {
    let made = rcgen::generate_simple_self_signed(["hooks.example.org".to_owned()]).expect("makes one");
    let shown = rcgen::generate_simple_self_signed(["collector.example.org".to_owned()]).expect("makes one");
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shown.cert.der().clone()).expect("a certificate");
    let roots = std::sync::Arc::new(roots);
    let asks = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("has them")
        .with_client_cert_verifier(asks.expect("has a root"))
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("fits");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("https://{}/hook", socket.local_addr().expect("has one"));
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.expect("accepts");
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let (authority, chain, key) = (made.cert.pem(), shown.cert.pem(), shown.signing_key.serialize_pem());
    let authorities = Some(authority.as_bytes());
    let identity = Some((chain.as_bytes(), key.as_bytes()));
    let server_name = Some("hooks.example.org");
    let send = async |trust: Trust<'_>| {
        let config = webhook::Config::new(&url, None, &trust).expect("valid");
        config.send("msg_1", clock(), b"{}").await
    };
    send(Trust { authorities, server_name, identity }).await.expect("taken");
    let nameless = send(Trust { authorities, server_name: None, identity }).await.expect_err("another name");
    assert!(matches!(nameless, NotifyError::Handshake { .. }), "{}", nameless.chain());
    // In TLS 1.3 a server says no only after the client has begun to speak.
    send(Trust { authorities, server_name, identity: None }).await.expect_err("shows nothing");
    let wrong = |trust: Trust<'_>| webhook::Config::new(&url, None, &trust).expect_err("must be refused").key("url");
    let other = made.signing_key.serialize_pem();
    assert_eq!(
        wrong(Trust { identity: Some((chain.as_bytes(), other.as_bytes())), ..Trust::default() }),
        "certificate_file"
    );
    assert_eq!(wrong(Trust { identity: Some((b"", key.as_bytes())), ..Trust::default() }), "certificate_file");
    assert_eq!(wrong(Trust { server_name: Some("a b"), ..Trust::default() }), "server_name");
    let plain = Trust { identity, ..Trust::default() };
    assert!(matches!(webhook::Config::new("http://h/", None, &plain), Err(webhook::ConfigError::NoTls)));
}
