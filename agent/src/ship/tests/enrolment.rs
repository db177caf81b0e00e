//! Enrolment against a listener with a real certificate: whom the agent trusts, and what it is told.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::CertificateSigningRequestParams;
use tickbird_shared::Labels;
use tickbird_shared::enrolment::{EnrolmentAnswer, EnrolmentRequest, EnrolmentToken};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::collector::Authority;
use super::wall_clock;
use crate::identity::{Identity, IdentityError, tls};
use crate::ship::ConnectionError;
use crate::ship::enrolment::{EnrolError, Enrolment};

const SECRET: &str = "s3cret-s3cret-s3cret-s3cret";

/// A listener for people that knows one token.
struct Listener {
    authority: Arc<Authority>,
    address: SocketAddr,
}

impl Listener {
    async fn start(names: &'static [&'static str]) -> Self {
        let authority = Arc::new(Authority::new());
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(names, false)));
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let signer = Arc::clone(&authority);
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let signer = Arc::clone(&signer);
                let service = service_fn(move |request| enrol(Arc::clone(&signer), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { authority, address }
    }

    fn token(&self) -> EnrolmentToken {
        EnrolmentToken { authority: tls::fingerprint(&self.authority.der), secret: SECRET.into() }
    }
}

async fn enrol(authority: Arc<Authority>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    assert_eq!(request.uri().path(), "/v1/enroll");
    let body = request.into_body().collect().await?.to_bytes();
    let asked: EnrolmentRequest = serde_json::from_slice(&body).expect("a request");
    let answer = |status, text: String| Response::builder().status(status).body(Full::new(Bytes::from(text)));
    if asked.token != SECRET {
        let problem = r#"{"code":"token_refused","detail":"the enrolment token gives nothing"}"#;
        return Ok(answer(403, problem.into()).expect("a response"));
    }
    let certificate = CertificateSigningRequestParams::from_pem(&asked.csr).expect("a request");
    let certificate = authority.sign_request(certificate);
    let text = serde_json::to_string(&EnrolmentAnswer {
        agent: "a-7".into(),
        tenant: "default".into(),
        labels: Labels::default(),
        certificate,
        authority: authority.pem.clone(),
        url: "https://127.0.0.1:7443".into(),
        expires_at: "2060-01-01T00:00:00Z".parse().expect("a time"),
    });
    Ok(answer(200, text.expect("JSON")).expect("a response"))
}

async fn attempt(token: &EnrolmentToken, collector: &str, state: &tempfile::TempDir) -> Result<Identity, EnrolError> {
    let enrolment = Enrolment { token, collector, host: "db-1", state_dir: state.path(), replace: false };
    enrolment.run(wall_clock()).await
}

fn state() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[tokio::test]
async fn a_token_gives_an_identity_that_survives_a_restart() {
    let listener = Listener::start(&["127.0.0.1"]).await;
    let (state, url) = (state(), format!("https://{}", listener.address));
    let identity = attempt(&listener.token(), &url, &state).await.expect("enrolled");
    assert_eq!(identity.card().agent, "a-7");
    assert_eq!(Identity::load(state.path(), wall_clock()).expect("loaded").card(), identity.card());
    let again = attempt(&listener.token(), &url, &state).await.expect_err("refused");
    assert!(matches!(again, EnrolError::Identity(IdentityError::Exists { .. })), "{again}");
}

#[tokio::test]
async fn nothing_is_said_to_a_server_that_the_token_does_not_name() {
    let listener = Listener::start(&["127.0.0.1"]).await;
    let other = Listener::start(&["127.0.0.1"]).await;
    let state = state();
    let error = attempt(&listener.token(), &format!("https://{}", other.address), &state).await.expect_err("refused");
    assert!(matches!(error, EnrolError::Connection(ConnectionError::WrongAuthority { .. })), "{error:?}");
    assert!(error.advice().is_some_and(|advice| advice.contains("token")));
    assert!(!Identity::exists(state.path()));
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_even_from_the_right_authority() {
    let listener = Listener::start(&["collector.internal"]).await;
    let error = attempt(&listener.token(), &format!("https://{}", listener.address), &state()).await;
    let error = error.expect_err("refused");
    assert!(matches!(error, EnrolError::Connection(ConnectionError::Tls { .. })), "{error:?}");
}

#[tokio::test]
async fn each_failure_is_named_and_none_shows_the_token() {
    let listener = Listener::start(&["127.0.0.1"]).await;
    let url = format!("https://{}", listener.address);
    let spent = EnrolmentToken { secret: format!("{SECRET}-spent"), ..listener.token() };
    let error = attempt(&spent, &url, &state()).await.expect_err("refused");
    assert!(matches!(error, EnrolError::TokenRefused));
    assert!(!format!("{error} {error:?} {:?}", error.advice()).contains("s3cret"));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let error = attempt(&listener.token(), &format!("https://{free}"), &state()).await.expect_err("refused");
    assert!(matches!(error, EnrolError::Connection(ConnectionError::Unreachable { .. })), "{error:?}");
    assert!(error.advice().is_some_and(|advice| advice.contains("7444")));

    let error = attempt(&listener.token(), "http://127.0.0.1:1", &state()).await.expect_err("refused");
    assert!(matches!(error, EnrolError::Origin(_)));
}
