//! Against real servers: hyper over TCP and rustls, and sockets that misbehave.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::inspect::tls_certificate::tests::{Issued, issue};

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    (listener, address)
}

/// Serves one connection: `/<status>` answers with that status, `/body/<n>` with n bytes, all with what was asked.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let header = |name: &str| request.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or("").to_owned();
        let asked = format!(r#"{{"host":"{}","agent":"{}","ok":true}}"#, header("host"), header("user-agent"));
        let body = match path.strip_prefix("body/").and_then(|it| it.parse().ok()) {
            Some(length) => vec![b'x'; length],
            None if path == "204" => Vec::new(),
            None => asked.into_bytes(),
        };
        let mut answer = Response::builder().status(path.parse::<u16>().unwrap_or(200));
        if path == "302" {
            answer = answer.header("location", "/500");
        }
        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(body))).expect("an answer"))
    });
    // A client that hangs up early is what some of these tests are about.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn options(url: &str) -> Options {
    let timeout = Duration::from_secs(10);
    Options { url: url.into(), status: None, body_matches: None, json: Vec::new(), timeout, ca_file: None }
}

fn config(url: &str) -> Config {
    Config::new(options(url)).expect("is right")
}

async fn look(config: Config) -> (Probe, Vec<Observation>) {
    let Reading { rows: Rows::Probe(probe), observations } = HttpInspector::new(config).inspect(Duration::ZERO).await
    else {
        panic!("other rows")
    };
    (probe, observations)
}

/// Looks at a server that treats its one connection like this.
async fn against<F: Future<Output = ()> + Send + 'static>(
    path: &str,
    adjust: impl FnOnce(&mut Options),
    treat: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> Probe {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        treat(stream).await;
    });
    let mut options = options(&format!("http://{address}{path}"));
    adjust(&mut options);
    let (probe, _) = look(Config::new(options).expect("is right")).await;
    server.abort();
    probe
}

fn acceptor(issued: &Issued) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![issued.certificate.clone()], issued.key.clone_key())
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

async fn against_tls(issued: &Issued, trusted: bool) -> Probe {
    let (listener, address) = listen().await;
    let acceptor = acceptor(issued);
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        if let Ok(stream) = acceptor.accept(stream).await {
            serve(stream).await;
        }
    });
    let mut config = config(&format!("https://localhost:{}/", address.port()));
    if trusted {
        config.authorities.push(issued.authority.clone());
    }
    let (probe, _) = look(config).await;
    server.abort();
    probe
}

fn phases(probe: &Probe) -> Vec<Phase> {
    probe.phases.iter().map(|(phase, _)| *phase).collect()
}

#[track_caller]
fn failed(probe: &Probe, phase: Phase, what: &str) {
    let failure = probe.outcome.as_ref().expect_err("no answer");
    assert_eq!((failure.phase, &*failure.what), (phase, what));
    assert_eq!(probe.status_as_expected, None);
    assert_eq!(probe.phases.last().map(|(phase, _)| *phase), Some(phase), "the failed one is the last");
}

#[tokio::test]
async fn an_answer_has_its_status_its_phases_and_its_assertions() {
    let adjust = |options: &mut Options| {
        options.body_matches = Some("tickbird-agent/[0-9]".into());
        options.json = vec![("/ok".into(), true.into()), ("/no".into(), 1.into())];
    };
    let probe = against("/?x=1", adjust, serve).await;
    assert_eq!(probe.outcome.as_ref().map(|answer| answer.status), Ok(200));
    assert_eq!(probe.status_as_expected, Some(true));
    assert_eq!(phases(&probe), [Phase::Resolve, Phase::Connect, Phase::FirstByte, Phase::Body]);
    let failed: Vec<_> = probe.assertions.iter().map(|assertion| assertion.failed.as_deref()).collect();
    assert_eq!(failed, [None, None, Some("absent")]);
    assert_eq!(probe.certificate, None);
}

#[tokio::test]
async fn every_status_is_an_answer() {
    for (path, status, expected) in
        [("/500", 500, false), ("/204", 204, true), ("/302", 302, true), ("/404", 404, false)]
    {
        let probe = against(path, |_| (), serve).await;
        assert_eq!(probe.outcome.as_ref().map(|answer| answer.status), Ok(status));
        assert_eq!(probe.status_as_expected, Some(expected), "{path}");
    }
}

#[tokio::test]
async fn the_seconds_of_a_request_are_those_of_its_phases() {
    let (listener, address) = listen().await;
    tokio::spawn(async move { serve(listener.accept().await.expect("accepts").0).await });
    let (probe, observations) = look(config(&format!("http://{address}/"))).await;
    let names: Vec<_> = observations.iter().map(|it| it.measure.name).collect();
    assert_eq!(names[0], "endpoint.seconds");
    assert_eq!(names.len(), 1 + probe.phases.len());
    let known: Vec<f64> = observations.iter().filter_map(|it| it.value.known()).collect();
    assert!((known[0] - known[1..].iter().sum::<f64>()).abs() < 1e-9, "{known:?}");
}

#[tokio::test]
async fn a_long_body_is_read_to_its_bound() {
    let adjust = |options: &mut Options| options.body_matches = Some("y".into());
    let probe = against("/body/3000000", adjust, serve).await;
    assert_eq!(probe.outcome, Ok(Answer { status: 200, body_bytes: 1024 * 1024 }));
    assert_eq!(probe.assertions[0].failed.as_deref(), Some("no match in the part that was read"));
    let probe = against("/body/1048576", |_| (), serve).await;
    assert_eq!(probe.outcome, Ok(Answer { status: 200, body_bytes: 1024 * 1024 }));
}

async fn answer_and_close(mut stream: TcpStream, answer: &'static [u8]) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await;
    let _ = stream.write_all(answer).await;
}

#[tokio::test]
async fn an_answer_that_is_none_fails_in_its_phase() {
    let probe = against("/", |_| (), |stream| answer_and_close(stream, b"SSH-2.0-OpenSSH_9.2\r\n")).await;
    failed(&probe, Phase::FirstByte, "the answer is not HTTP/1.1");
    let probe = against("/", |_| (), |stream| answer_and_close(stream, b"")).await;
    failed(&probe, Phase::FirstByte, "connection closed");
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it";
    let probe = against("/", |_| (), |stream| answer_and_close(stream, cut)).await;
    failed(&probe, Phase::Body, "connection closed");
    let head: &'static [u8] = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(1_000_000)).leak().as_bytes();
    let probe = against("/", |_| (), move |stream| answer_and_close(stream, head)).await;
    failed(&probe, Phase::FirstByte, "headers of more than 64 KiB");
}

#[tokio::test]
async fn a_reset_in_the_middle_of_the_body_is_no_answer() {
    let probe = against(
        "/",
        |_| (),
        |mut stream| async move {
            // What is left unread when the socket closes makes the kernel answer with a reset.
            let _ = stream.read(&mut [0; 8]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        },
    )
    .await;
    failed(&probe, Phase::Body, "connection reset");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_in_time() {
    let brief = |options: &mut Options| options.timeout = Duration::from_millis(150);
    let probe = against("/", brief, |stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    })
    .await;
    failed(&probe, Phase::FirstByte, "no answer within 150ms");
    let probe = against("/", brief, |mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        std::future::pending::<()>().await;
    })
    .await;
    failed(&probe, Phase::Body, "no answer within 150ms");
}

#[tokio::test]
async fn nobody_listening_and_no_such_name_are_told_apart() {
    let (listener, address) = listen().await;
    drop(listener);
    let (probe, observations) = look(config(&format!("http://{address}/"))).await;
    failed(&probe, Phase::Connect, "connection refused");
    assert!(matches!(&observations[0].value, Value::Unknown(Reason::Unreachable(_))), "{observations:?}");
    assert_eq!(observations.len(), 2, "the phase that failed has no duration: {observations:?}");
    let name = "x".repeat(70);
    let (probe, _) = look(config(&format!("http://{name}/"))).await;
    assert_eq!(probe.outcome.expect_err("a label is at most 63 bytes").phase, Phase::Resolve);
}

#[tokio::test]
async fn a_good_certificate_is_shown_and_trusted() {
    let probe = against_tls(&issue(&["localhost"], 2020, 2040), true).await;
    assert_eq!(probe.outcome.as_ref().map(|answer| answer.status), Ok(200));
    assert_eq!(phases(&probe), [Phase::Resolve, Phase::Connect, Phase::Tls, Phase::FirstByte, Phase::Body]);
    let certificate = probe.certificate.expect("was shown");
    assert_eq!((&*certificate.subject, certificate.refused), ("localhost", None));
    assert_eq!(certificate.not_after.to_string(), "2040-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_refused_certificate_is_shown_with_its_reason_and_gets_no_request() {
    for (names, to, trusted, why) in [
        (["localhost"], 2021, true, "expired"),
        (["elsewhere"], 2040, true, "not valid for this name"),
        (["localhost"], 2040, false, "unknown issuer"),
    ] {
        let probe = against_tls(&issue(&names, 2020, to), trusted).await;
        failed(&probe, Phase::Tls, why);
        let certificate = probe.certificate.expect("is remembered");
        assert_eq!(certificate.refused.as_deref(), Some(why));
        assert_eq!(&*certificate.subject, names[0]);
    }
}

#[tokio::test]
async fn a_peer_without_tls_is_said_to_be_one() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        answer_and_close(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let (probe, _) = look(config(&format!("https://{address}/"))).await;
    failed(&probe, Phase::Tls, "the peer speaks no TLS");
}

#[tokio::test]
async fn an_ipv6_literal_is_asked_with_its_brackets() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        eprintln!("skipped: no IPv6 on this host's loopback");
        return;
    };
    let port = listener.local_addr().expect("is bound").port();
    tokio::spawn(async move { serve(listener.accept().await.expect("accepts").0).await });
    let mut options = options(&format!("http://[::1]:{port}/"));
    options.json = vec![("/host".into(), format!("[::1]:{port}").into())];
    let (probe, _) = look(Config::new(options).expect("is right")).await;
    assert_eq!(probe.target.as_str(), format!("endpoint:http://[::1]:{port}/"));
    assert_eq!(probe.assertions[0].failed, None, "{probe:?}");
}
