//! A collector to ship to: real TLS with client certificates, real HTTP, a strict eye on sequences, and every bad day a
//! collector can have.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use tickbird_shared::batch::{Batch, Record, Refused};
use tickbird_shared::{Acknowledgement, Labels, Lane, StartWord, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::identity::{Card, Enrolled, Identity};

/// An authority, and what it signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).expect("signed");
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(parameters, key), pem, der }
    }

    /// A certificate and its key for these names and addresses.
    pub(super) fn sign(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &self.issuer).expect("signed");
        (certificate, key)
    }

    /// The certificate that a request asks for, PEM.
    pub(super) fn sign_request(&self, request: CertificateSigningRequestParams) -> String {
        request.signed_by(&self.issuer).expect("signed").pem()
    }

    /// An enrolled agent's identity in a state directory.
    pub(super) fn enrol(&self, state_dir: &Path, url: &str) -> Identity {
        let (certificate, key) = self.sign(&["agent"]);
        let far = Timestamp::from_second(4_000_000_000).expect("a time");
        let card = Card {
            agent: "a-1".into(),
            tenant: "default".into(),
            labels: Labels::default(),
            url: url.into(),
            expires_at: far,
        };
        let key = Zeroizing::new(key.serialize_pem());
        let enrolled = Enrolled { card, key, certificate: certificate.pem(), authority: self.pem.clone() };
        Identity::install(state_dir, &enrolled, true).expect("installed");
        Identity::load(state_dir, super::wall_clock()).expect("loaded")
    }

    /// TLS as a server shows it: the chain with the authority in it.
    pub(super) fn server(&self, names: &[&str], wants_clients: bool) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3");
        let builder = if wants_clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).expect("an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = self.sign(names);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        builder.with_single_cert(vec![certificate.der().clone(), self.der.clone()], key).expect("a chain")
    }
}

/// How the next request is treated instead of as it should be.
#[derive(Debug, Clone)]
pub(super) enum Mood {
    Answer(u16, Option<&'static str>, &'static str),
    /// The connection ends before anything is stored.
    Reset,
    /// It ends after everything was stored.
    ResetAfterCommit,
    /// No answer.
    Silent,
}

/// What the collector has seen.
#[derive(Debug, Default, Clone)]
pub(super) struct World {
    pub(super) moods: VecDeque<Mood>,
    /// A batch with more records is 413.
    pub(super) max_records: Option<usize>,
    /// By epoch and lane: the records by sequence, losses under their first.
    pub(super) stored: BTreeMap<(String, Lane), BTreeMap<u64, String>>,
    /// By epoch and lane: what is settled.
    pub(super) settled: BTreeMap<(String, Lane), u64>,
    /// By epoch and lane: the start that it goes by.
    pub(super) starts: BTreeMap<(String, Lane), StartWord>,
    /// Batches that came from another start.
    pub(super) superseded: usize,
    pub(super) requests: usize,
    pub(super) heartbeats: usize,
    pub(super) goodbyes: usize,
    /// Requests to renew the certificate; each is answered 503.
    pub(super) renewals: usize,
    pub(super) connections: usize,
    /// Lane of each batch with records, in order of arrival.
    pub(super) order: Vec<Lane>,
    /// Sequences that came a second time after they were acknowledged, or out of order.
    pub(super) violations: Vec<String>,
}

impl World {
    pub(super) fn records(&self, lane: Lane) -> Vec<String> {
        let lanes = self.stored.iter().filter(|((_, of), _)| *of == lane);
        lanes.flat_map(|(_, records)| records.values().cloned()).collect()
    }
}

/// The collector. Ends when dropped.
pub(super) struct Collector {
    pub(super) address: SocketAddr,
    pub(super) authority: Authority,
    tls: Arc<ServerConfig>,
    world: Arc<watch::Sender<World>>,
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl Collector {
    pub(super) async fn start() -> Self {
        let authority = Authority::new();
        let tls = Arc::new(authority.server(&["localhost", "127.0.0.1"], true));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let world = Arc::new(watch::Sender::new(World::default()));
        let collector = Self { address, authority, tls, world, tasks: Mutex::new(None) };
        collector.serve(listener);
        collector
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(super) fn with(&self, change: impl FnOnce(&mut World)) {
        self.world.send_modify(change);
    }

    pub(super) fn world(&self) -> World {
        self.world.borrow().clone()
    }

    /// Waits until the world is so.
    pub(super) async fn sees(&self, what: &str, is_so: impl FnMut(&World) -> bool) -> World {
        let mut receiver = self.world.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), receiver.wait_for(is_so)).await;
        match waited {
            Ok(world) => world.expect("the sender lives").clone(),
            Err(_) => panic!("the collector never saw {what}: {:?}", self.world()),
        }
    }

    /// Ends the listener and all connections.
    pub(super) fn stop(&self) {
        *self.tasks.lock().expect("not poisoned") = None;
    }

    /// Listens again on the same port.
    pub(super) async fn restart(&self) {
        self.serve(TcpListener::bind(self.address).await.expect("the same port"));
    }

    fn serve(&self, listener: TcpListener) {
        let (tls, world) = (TlsAcceptor::from(Arc::clone(&self.tls)), Arc::clone(&self.world));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, world) = (tls.clone(), Arc::clone(&world));
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    world.send_modify(|world| world.connections += 1);
                    let service = service_fn(move |request| answer(Arc::clone(&world), request));
                    // An error is what `Mood::Reset` asks for.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        *self.tasks.lock().expect("not poisoned") = Some(tasks);
    }
}

/// An error makes hyper end the connection.
#[derive(Debug, thiserror::Error)]
#[error("a bad day")]
struct BadDay;

async fn answer(world: Arc<watch::Sender<World>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BadDay> {
    if request.uri().path() == "/v1/renew" {
        world.send_modify(|world| world.renewals += 1);
        return Ok(response(503, None, r#"{"code":"store_full"}"#.into()));
    }
    assert_eq!(request.uri().path(), "/v1/records");
    assert_eq!(request.headers()["content-encoding"], "zstd");
    let body = request.into_body().collect().await.map_err(|_| BadDay)?.to_bytes();
    let text = zstd::bulk::decompress(&body, 16 << 20).expect("zstd");
    let mut mood = None;
    world.send_modify(|world| {
        world.requests += 1;
        mood = world.moods.pop_front();
    });
    match &mood {
        Some(Mood::Answer(status, retry_after, body)) => return Ok(response(*status, *retry_after, (*body).into())),
        Some(Mood::Reset) => return Err(BadDay),
        Some(Mood::Silent) => std::future::pending().await,
        Some(Mood::ResetAfterCommit) | None => {}
    }
    let mut answered = (0, String::new());
    world.send_modify(|world| answered = take(world, &text));
    if matches!(mood, Some(Mood::ResetAfterCommit)) {
        return Err(BadDay);
    }
    Ok(response(answered.0, None, answered.1))
}

fn response(status: u16, retry_after: Option<&str>, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    if let Some(retry_after) = retry_after {
        response = response.header("retry-after", retry_after);
    }
    response.body(Full::new(Bytes::from(body))).expect("a response")
}

/// A batch, by the rules of the wire.
fn take(world: &mut World, text: &[u8]) -> (u16, String) {
    let batch: Batch<'_> = serde_json::from_slice(text).expect("a batch");
    let key = (batch.epoch.to_string(), batch.lane);
    let settled = world.settled.get(&key).copied().unwrap_or(batch.first - 1);
    let start = batch.start.clone().expect("what is on disk has a start");
    let known = world.starts.get(&key);
    if known.is_some_and(|word| start.holds_of(*word).is_none_or(|holds| settled > holds)) {
        world.superseded += 1;
        return (409, r#"{"code":"other_start"}"#.into());
    }
    world.goodbyes += usize::from(batch.goodbye);
    if batch.records.is_empty() {
        world.heartbeats += 1;
        return (200, acknowledge(settled, Vec::new()));
    }
    if batch.records.len() > world.max_records.unwrap_or(usize::MAX) {
        return (413, r#"{"code":"too_large"}"#.into());
    }
    if batch.records.iter().any(|record| record.get().contains("poison")) {
        return (400, r#"{"code":"malformed"}"#.into());
    }
    if batch.first > settled + 1 {
        return (409, format!(r#"{{"code":"gap","through":{settled}}}"#));
    }
    world.order.push(batch.lane);
    let mut refused = Vec::new();
    let mut sequence = batch.first;
    for raw in &batch.records {
        let record: Option<Record<'_>> = serde_json::from_str(raw.get()).ok();
        let width = record.as_ref().map_or(1, Record::width);
        if raw.get().contains("refuse") {
            refused.push(Refused { seq: sequence, code: "evidence_too_large".into() });
        } else if sequence > settled {
            let before = world.stored.entry(key.clone()).or_default().insert(sequence, raw.get().to_owned());
            if before.is_some() {
                world.violations.push(format!("{sequence} was stored twice"));
            }
        }
        sequence += width;
    }
    if sequence - 1 > settled {
        world.starts.insert(key.clone(), start.word);
    }
    world.settled.insert(key, settled.max(sequence - 1));
    (200, acknowledge(settled.max(sequence - 1), refused))
}

fn acknowledge(through: u64, refused: Vec<Refused>) -> String {
    serde_json::to_string(&Acknowledgement { through, refused }).expect("JSON")
}
