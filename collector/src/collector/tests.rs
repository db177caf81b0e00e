//! A whole collector over real TLS, spoken to by a client that shares nothing with the agent.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tickbird_shared::protocol::{ENROL_PATH, MAX_COMPRESSED_BYTES, MAX_DECOMPRESSED_BYTES, RECORDS_PATH, RENEW_PATH};
use tickbird_shared::{Fingerprint, Timestamp};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::pki::{self, Authority, Keyring, Lives};
use crate::store::FindingFilter;

const EPOCH: &str = "01JD7Z5W0000000000000000AA";

struct Scene {
    _room: TempDir,
    directory: Directory,
    token: String,
    collector: Option<Collector>,
}

impl Scene {
    async fn begin() -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let directory = Directory::new(room.path().join("collector"));
        let configuration = "[agents]\nlisten = \"127.0.0.1:0\"\n[people]\nlisten = \"127.0.0.1:0\"\n";
        let created = directory
            .create(&["127.0.0.1".into()], configuration, Lives::default(), Timestamp::now())
            .expect("makes a collector");
        let mut it = Self { _room: room, directory, token: created.enrolment_token, collector: None };
        it.start().await;
        it
    }

    async fn start(&mut self) {
        let config = Config::read(&self.directory.config()).expect("reads");
        let started = Collector::start(self.directory.clone(), config, Timestamp::now).await;
        self.collector = Some(started.expect("starts"));
    }

    async fn stop(&mut self) {
        self.collector.take().expect("runs").stop().await.expect("ends tidily");
    }

    fn collector(&self) -> &Collector {
        self.collector.as_ref().expect("runs")
    }

    /// The secret of the first enrolment token.
    fn secret(&self) -> String {
        self.token.parse::<tickbird_shared::enrolment::EnrolmentToken>().expect("a token").secret
    }

    async fn enrol_with(&self, secret: &str, key: &KeyPair) -> (u16, Value) {
        let csr = CertificateParams::default().serialize_request(key).expect("signs").pem().expect("encodes");
        let body = json!({ "token": secret, "csr": csr, "host": "web-1" }).to_string();
        let mut connection = connect(self.collector().addresses().people, trust(&self.directory.authority(), None))
            .await
            .expect("connects");
        post(&mut connection, ENROL_PATH, None, body.into()).await.expect("answers")
    }

    async fn enrol(&self) -> Agent {
        let key = KeyPair::generate().expect("makes one");
        let (status, answer) = self.enrol_with(&self.secret(), &key).await;
        assert_eq!(status, 200, "{answer}");
        let certificate = answer["certificate"].as_str().expect("PEM");
        Agent {
            id: answer["agent"].as_str().expect("an id").to_owned(),
            tls: trust(&self.directory.authority(), Some((certificate, &key))),
        }
    }

    async fn connect(&self, agent: &Agent) -> SendRequest<Full<Bytes>> {
        connect(self.collector().addresses().agents, Arc::clone(&agent.tls)).await.expect("connects")
    }

    fn tally(&self) -> [u64; 4] {
        let counters = self.collector().handle.counters();
        [&counters.received, &counters.committed, &counters.duplicate, &counters.refused].map(|it| it.get())
    }

    /// As the command line does it: in another connection to the store. Waits until it is taken over.
    async fn deny(&self, id: &str) {
        let mut writer = Writer::open(&self.directory.store()).expect("opens");
        let transaction = writer.transaction().expect("begins");
        assert!(transaction.deny_agent("default", id, Timestamp::now()).expect("writes"));
        transaction.commit().expect("commits");
        let key = ledger::AgentKey::new("default", id);
        let directory = Arc::clone(self.collector().handle.directory());
        until("the agent is denied", move || directory.standing(&key) == Some(ledger::Standing::Denied)).await;
    }

    async fn findings(&self) -> Vec<String> {
        let filter = FindingFilter { tenant: "default".into(), limit: 1_000, ..FindingFilter::default() };
        let readers = Readers::open(&self.directory.store()).expect("opens");
        let mut rows = readers.read(move |rows| rows.findings(&filter)).await.expect("reads");
        rows.reverse();
        rows.into_iter().map(|row| row.summary).collect()
    }
}

struct Agent {
    id: String,
    tls: Arc<rustls::ClientConfig>,
}

impl Agent {
    fn finding(&self, summary: &str) -> Value {
        let fingerprint = Fingerprint::of("default", &self.id, "pool.leak", "shop", None);
        json!({ "finding": {
            "fingerprint": fingerprint, "check": "pool.leak", "target": "shop", "status": "firing",
            "severity": "warning", "change": "began", "summary": summary, "reason": "over 30 s for 3 looks",
            "evidence": { "pid": 4121 }, "since": "2026-11-20T10:00:00Z", "observed_at": "2026-11-20T10:00:00Z",
        } })
    }
}

fn batch(first: u64, records: &[Value]) -> Value {
    json!({ "protocol": 1, "epoch": EPOCH, "lane": "urgent", "first": first, "sent_at": Timestamp::now(),
        "records": records })
}

fn zstd(body: &Value) -> Bytes {
    zstd::bulk::compress(body.to_string().as_bytes(), 1).expect("compresses").into()
}

async fn send(connection: &mut SendRequest<Full<Bytes>>, body: &Value) -> (u16, Value) {
    post(connection, RECORDS_PATH, Some("zstd"), zstd(body)).await.expect("answers")
}

fn trust(authority: &Path, identity: Option<(&str, &KeyPair)>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).expect("PEM")).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("supported")
        .with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("fits")
        }
    })
}

async fn connect(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> io::Result<SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let stream = TlsConnector::from(tls).connect(name, socket).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn post(
    connection: &mut SendRequest<Full<Bytes>>,
    path: &str,
    encoding: Option<&str>,
    body: Bytes,
) -> Result<(u16, Value), hyper::Error> {
    connection.ready().await?;
    let mut request = axum::http::Request::post(path).header("host", "127.0.0.1");
    if let Some(encoding) = encoding {
        request = request.header("content-encoding", encoding);
    }
    let answer = connection.send_request(request.body(Full::new(body)).expect("a request")).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// Whether a server lets this client in at all: TLS 1.3 tells a client without a certificate only after its handshake.
async fn is_let_in(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> bool {
    let Ok(mut connection) = connect(address, tls).await else { return false };
    post(&mut connection, RECORDS_PATH, None, Bytes::from_static(b"{}")).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_stored_once_however_often_and_however_cut_it_comes() {
    let mut scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let mut connection = scene.connect(&agent).await;
    let [a, b, c] = ["a", "b", "c"].map(|it| agent.finding(it));

    let (status, answer) = send(&mut connection, &batch(1, &[a.clone(), b.clone()])).await;
    assert_eq!((status, &answer), (200, &json!({"through": 2, "refused": []})));
    let (_, repeated) = send(&mut connection, &batch(1, &[a.clone(), b.clone()])).await;
    assert_eq!(repeated, answer);
    let (_, overlapping) = send(&mut connection, &batch(2, &[b.clone(), c.clone()])).await;
    assert_eq!(overlapping["through"], 3);
    let (_, heartbeat) = send(&mut connection, &batch(4, &[])).await;
    assert_eq!(heartbeat, json!({"through": 3, "refused": []}));
    let (status, gap) = send(&mut connection, &batch(9, &[c])).await;
    assert_eq!((status, &gap["code"], &gap["through"]), (409, &json!("gap"), &json!(3)));
    let (_, cloned) = send(&mut connection, &batch(2, &[a, b])).await;
    let codes: Vec<_> = cloned["refused"].as_array().expect("a list").iter().map(|it| &it["code"]).collect();
    assert_eq!(codes, ["cloned_identity", "cloned_identity"]);

    assert_eq!(scene.findings().await, ["a", "b", "c"]);
    let [received, committed, duplicate, refused] = scene.tally();
    assert_eq!((received, committed, duplicate, refused), (8, 3, 3, 2));

    // A new process knows what the old one has acknowledged.
    drop(connection);
    scene.stop().await;
    scene.start().await;
    let mut connection = scene.connect(&agent).await;
    let (_, answer) = send(&mut connection, &batch(2, &[agent.finding("b"), agent.finding("c")])).await;
    assert_eq!(answer["through"], 3);
    assert_eq!(scene.findings().await, ["a", "b", "c"]);
    assert_eq!(scene.tally(), [10, 3, 5, 2], "what the old one counted is counted still");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_record_is_refused_alone_and_said_again_with_a_repeat() {
    let scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let other = scene.enrol().await;
    let mut connection = scene.connect(&agent).await;
    let body =
        batch(1, &[agent.finding("good"), json!({"finding": 7}), other.finding("of another"), agent.finding("too")]);
    let expected = json!({"through": 4, "refused": [
        {"seq": 2, "code": "malformed"}, {"seq": 3, "code": "fingerprint_mismatch"}]});
    for _ in 0..2 {
        assert_eq!(send(&mut connection, &body).await, (200, expected.clone()));
    }
    assert_eq!(scene.findings().await, ["good", "too"]);
    assert_eq!(scene.tally(), [8, 2, 4, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_too_many_or_unreadable_is_refused_as_a_whole() {
    let scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let large = vec![b' '; MAX_COMPRESSED_BYTES + 1];
    let bomb = zstd::bulk::compress(&vec![b' '; MAX_DECOMPRESSED_BYTES + 1], 1).expect("compresses");
    let cases: [(&str, Option<&str>, Bytes, u16, &str); 8] = [
        (RECORDS_PATH, None, large.into(), 413, "too_large"),
        (RECORDS_PATH, Some("zstd"), bomb.into(), 413, "too_large"),
        (RECORDS_PATH, Some("zstd"), Bytes::from_static(b"not zstd"), 400, "bad_zstd"),
        (RECORDS_PATH, Some("gzip"), Bytes::from_static(b"x"), 415, "unsupported_encoding"),
        (RECORDS_PATH, None, Bytes::from_static(b"[1,2"), 400, "malformed"),
        (RECORDS_PATH, Some("zstd"), zstd(&batch(1, &vec![json!(1); 10_001])), 413, "too_many_records"),
        (RECORDS_PATH, Some("zstd"), zstd(&batch(0, &[])), 400, "malformed"),
        ("/v1/else", None, Bytes::new(), 404, "not_found"),
    ];
    for (path, encoding, body, status, code) in cases {
        let mut connection = scene.connect(&agent).await;
        let (found, problem) = post(&mut connection, path, encoding, body).await.expect("answers");
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert!(problem["request_id"].as_str().is_some_and(|it| it.len() == 26), "{problem}");
        drop(connection);
        until("the connection's seat is free", || scene.collector().connections() == 0).await;
    }
    assert_eq!(scene.tally(), [0; 4], "what was not settled was not received");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_of_ours_for_an_agent_we_know_gets_in() {
    let scene = Scene::begin().await;
    let address = scene.collector().addresses().agents;
    let authority = scene.directory.authority();
    assert!(!is_let_in(address, trust(&authority, None)).await, "no certificate");

    let now = Timestamp::now();
    let key = KeyPair::generate().expect("makes one");
    let csr = CertificateParams::default().serialize_request(&key).expect("signs").pem().expect("encodes");
    let request = pki::Request::read(&csr).expect("a request");
    let lives = Lives::default();
    let stranger = Authority::create(lives.authority, now).expect("makes one");
    let foreign = stranger.sign_agent(&request, ("default", "a-1"), lives.agent, now).expect("signs").certificate;
    assert!(!is_let_in(address, trust(&authority, Some((&foreign, &key)))).await, "another authority's");

    let ring = Keyring::read(&scene.directory.authority_key(), &authority).expect("reads");
    let ours = ring.newest();
    let long = Duration::from_secs(130 * 24 * 3600);
    let past = ours.sign_agent(&request, ("default", "a-1"), lives.agent, now - long).expect("signs").certificate;
    assert!(!is_let_in(address, trust(&authority, Some((&past, &key)))).await, "ended 100 days ago");

    let server = ours.sign_server(&["x".into()], lives.server, now).expect("signs");
    let server_key = KeyPair::from_pem(&server.key).expect("reads");
    assert!(!is_let_in(address, trust(&authority, Some((&server.certificate, &server_key)))).await, "a server's");

    let unknown = ours.sign_agent(&request, ("default", "a-unknown"), lives.agent, now).expect("signs").certificate;
    let mut connection = connect(address, trust(&authority, Some((&unknown, &key)))).await.expect("connects");
    let (status, problem) = send(&mut connection, &batch(1, &[])).await;
    assert_eq!((status, &problem["code"]), (403, &json!("denied")), "an agent that is not enrolled");
}

/// A request for the renewal of this key's certificate.
fn renewal(key: &KeyPair) -> Bytes {
    let csr = CertificateParams::default().serialize_request(key).expect("signs").pem().expect("encodes");
    json!({ "csr": csr }).to_string().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_renews_with_a_new_key_and_keeps_its_name() {
    let scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let mut connection = scene.connect(&agent).await;
    assert_eq!(send(&mut connection, &batch(1, &[agent.finding("a")])).await.0, 200);
    let key = KeyPair::generate().expect("makes one");
    let (status, answer) = post(&mut connection, RENEW_PATH, None, renewal(&key)).await.expect("answers");
    assert_eq!(status, 200, "{answer}");
    let certificate = answer["certificate"].as_str().expect("PEM");
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
    assert_eq!(pki::agent_of(&der), Some(("default".into(), agent.id.clone())));
    assert_eq!(answer["authority"], std::fs::read_to_string(scene.directory.authority()).expect("reads"));
    let tls = trust(&scene.directory.authority(), Some((certificate, &key)));
    let mut connection = connect(scene.collector().addresses().agents, tls).await.expect("connects");
    let (status, answer) = send(&mut connection, &batch(2, &[agent.finding("b")])).await;
    assert_eq!((status, &answer["through"]), (200, &json!(2)), "the sequences go on");
    for wrong in ["", "{}", r#"{"csr":"x"}"#] {
        let (status, problem) = post(&mut connection, RENEW_PATH, None, wrong.into()).await.expect("answers");
        assert!(matches!(status, 400 | 422), "{wrong}: {status} {problem}");
    }
    let (status, _) = post(&mut connection, RENEW_PATH, None, vec![b' '; 64 << 10].into()).await.expect("answers");
    assert_eq!(status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ended_serves_for_the_renewal_of_its_own_key_and_for_nothing_else() {
    let scene = Scene::begin().await;
    let known = scene.enrol().await;
    let ring = Keyring::read(&scene.directory.authority_key(), &scene.directory.authority()).expect("reads");
    let (key, other) = (KeyPair::generate().expect("makes one"), KeyPair::generate().expect("makes one"));
    let csr = CertificateParams::default().serialize_request(&key).expect("signs").pem().expect("encodes");
    let request = pki::Request::read(&csr).expect("a request");
    let day = Duration::from_secs(24 * 3600);
    let ended = |days: u32| {
        let made = Timestamp::now() - (day * (30 + days));
        let signed = ring.newest().sign_agent(&request, ("default", &known.id), day * 30, made).expect("signs");
        trust(&scene.directory.authority(), Some((&signed.certificate, &key)))
    };
    let address = scene.collector().addresses().agents;
    let mut connection = connect(address, ended(89)).await.expect("connects");
    let (status, problem) = send(&mut connection, &batch(1, &[known.finding("a")])).await;
    assert_eq!((status, &problem["code"]), (403, &json!("certificate_ended")));
    let (status, problem) = post(&mut connection, RENEW_PATH, None, renewal(&other)).await.expect("answers");
    assert_eq!((status, &problem["code"]), (422, &json!("csr")), "who has no key of it gains nothing");
    let (status, answer) = post(&mut connection, RENEW_PATH, None, renewal(&key)).await.expect("answers");
    assert_eq!(status, 200, "{answer}");
    assert!(!is_let_in(address, ended(91)).await, "too long ago");

    scene.deny(&known.id).await;
    let mut connection = connect(address, ended(1)).await.expect("connects");
    let (status, problem) = post(&mut connection, RENEW_PATH, None, renewal(&key)).await.expect("answers");
    assert_eq!((status, &problem["code"]), (403, &json!("denied")));
    assert!(scene.findings().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_agents_connection_is_cut_within_five_seconds() {
    let scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let mut connection = scene.connect(&agent).await;
    assert_eq!(send(&mut connection, &batch(1, &[agent.finding("a")])).await.0, 200);

    scene.deny(&agent.id).await;
    let cut = async {
        while connection.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), cut).await.expect("the connection is cut");
    let mut connection = scene.connect(&agent).await;
    let (status, problem) = send(&mut connection, &batch(2, &[agent.finding("b")])).await;
    assert_eq!((status, &problem["code"]), (403, &json!("denied")));
    assert_eq!(scene.findings().await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_connection_of_one_agent_is_told_to_come_back() {
    let scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let (mut first, mut second) = (scene.connect(&agent).await, scene.connect(&agent).await);
    for connection in [&mut first, &mut second] {
        assert_eq!(send(connection, &batch(1, &[])).await.0, 200);
    }
    let mut third = scene.connect(&agent).await;
    let (status, problem) = send(&mut third, &batch(1, &[])).await;
    assert_eq!((status, &problem["code"]), (429, &json!("too_many_connections")));
}

/// What is announced and does not come, from more agents than bodies of that size have room: others are served at once.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_take_no_room_from_others() {
    let scene = Scene::begin().await;
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let slow = scene.enrol().await;
        for _ in 0..2 {
            let socket = TcpStream::connect(scene.collector().addresses().agents).await.expect("connects");
            let name = ServerName::try_from("127.0.0.1").expect("a name");
            let tls = TlsConnector::from(Arc::clone(&slow.tls)).connect(name, socket);
            let mut stream = tls.await.expect("shakes hands");
            let head =
                format!("POST {RECORDS_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_COMPRESSED_BYTES}\r\n\r\n ");
            tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("writes");
            waiting.push(stream);
        }
    }
    until("all of them are read", || scene.collector().connections() == 20).await;
    let agent = scene.enrol().await;
    let mut connection = scene.connect(&agent).await;
    for first in 1..=20 {
        let (status, answer) = send(&mut connection, &batch(first, &[agent.finding("a")])).await;
        assert_eq!((status, &answer["through"]), (200, &json!(first)), "{answer}");
    }
    drop(waiting);
}

/// Faults are paid for, in the order of what they cost us; whoever does not wait then is not listened to.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_sends_nothing_but_bombs_is_told_to_wait_and_then_cut() {
    let scene = Scene::begin().await;
    let agent = scene.enrol().await;
    let bomb: Bytes = zstd::bulk::compress(&vec![b' '; MAX_DECOMPRESSED_BYTES + 1], 1).expect("compresses").into();
    let mut connection = scene.connect(&agent).await;
    let mut codes = Vec::new();
    while codes.last().is_none_or(|code| code != "wait_ignored") {
        let answer = post(&mut connection, RECORDS_PATH, Some("zstd"), bomb.clone()).await;
        let (status, problem) = answer.expect("answers until it is cut");
        let code = problem["code"].as_str().expect("a code").to_owned();
        assert_eq!(status, if code == "too_large" { 413 } else { 429 }, "{problem}");
        codes.push(code);
        assert!(codes.len() < 60, "{codes:?}");
    }
    assert!(codes.len() > 15, "a few are let pass: {codes:?}");
    assert_eq!(codes[codes.len() - 2], "rate_limited");
    assert!(connection.ready().await.is_err(), "it is cut");
    let other = scene.enrol().await;
    assert_eq!(send(&mut scene.connect(&other).await, &batch(1, &[other.finding("b")])).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_as_often_as_it_says_and_a_wrong_one_never() {
    let scene = Scene::begin().await;
    let key = KeyPair::generate().expect("makes one");
    let ours = Keyring::read(&scene.directory.authority_key(), &scene.directory.authority()).expect("reads");
    let mut labels = tickbird_shared::Labels::default();
    labels.insert("env", "production").expect("valid");
    let terms = crate::token::Terms { ttl: Duration::from_secs(60), uses: 1, labels, ephemeral: false };
    let (row, token) = crate::token::enrolment(ours.newest().fingerprint(), terms, Timestamp::now());
    let mut writer = Writer::open(&scene.directory.store()).expect("opens");
    let transaction = writer.transaction().expect("begins");
    transaction.add_token(&row).expect("writes");
    transaction.commit().expect("commits");

    let (status, answer) = scene.enrol_with(&token.secret, &key).await;
    assert_eq!((status, &answer["labels"]["env"]), (200, &json!("production")));
    assert!(answer["url"].as_str().expect("a url").starts_with("https://127.0.0.1:"), "{answer}");
    let used_up = scene.enrol_with(&token.secret, &key).await;
    assert_eq!((used_up.0, &used_up.1["code"]), (403, &json!("token_refused")));
    // Ten wrong ones in all, then the address is slowed.
    let mut last = (0, Value::Null);
    for _ in 0..10 {
        last = scene.enrol_with("guessed-guessed-guessed", &key).await;
    }
    assert_eq!((last.0, &last.1["code"]), (429, &json!("rate_limited")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_enrol_that_is_far_too_large_hears_so() {
    let scene = Scene::begin().await;
    let people = scene.collector().addresses().people;
    let mut connection = connect(people, trust(&scene.directory.authority(), None)).await.expect("connects");
    let answer = post(&mut connection, ENROL_PATH, None, vec![b' '; 3 << 20].into()).await;
    let (status, problem) = answer.expect("the whole body is taken, so that the answer arrives");
    assert_eq!((status, problem["code"].as_str()), (413, Some("too_large")), "{problem}");
    assert!(connection.ready().await.is_ok(), "the connection is not broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_collectors_do_not_serve_one_directory() {
    let scene = Scene::begin().await;
    let config = Config::read(&scene.directory.config()).expect("reads");
    let second = Collector::start(scene.directory.clone(), config, Timestamp::now).await;
    assert!(matches!(second, Err(CollectorError::Serving(_))));
}

/// Waits for a state, with a deadline.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), reached).await.is_ok(), "{what}");
}
