//! A receiver that takes a POST: the stored bytes, signed as the Standard Webhooks specification says.
//!
//! `webhook-id` is the message's own and the same on each attempt, `webhook-timestamp` is that of the attempt, and
//! `webhook-signature` is `v1,` and the base 64 of HMAC-SHA-256 over `id.timestamp.body`. Redirects are not followed: the
//! place that a signed message goes to is configured, not answered.

use std::fmt;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tickbird_shared::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::alert::{Head, METHODS};

use super::connect::{self, Place, Tls, TlsError, Trust};
use super::{NotifyError, Phase};

/// An attempt, from looking up the name to the answer, takes at most this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// So much of an answer's body is read, to end the connection tidily.
const MAX_ANSWER: usize = 16 << 10;
/// The head of an answer may be so long.
const MAX_HEAD: usize = 32 << 10;
/// Length of a secret in bytes: as the specification bounds it.
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;

/// What is written by whoever sends, and not by the configuration.
const TAKEN: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Why a webhook cannot be configured so. Neither the path of the URL nor the secret is ever shown: both let people in.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not an absolute URL.
    #[error("the URL is not an absolute http or https URL")]
    Url,
    /// It carries a user name or password.
    #[error("the URL holds a user name or password")]
    UserInfo,
    /// The secret is not `whsec_` and base 64.
    #[error("the secret is not `whsec_` followed by base 64")]
    Secret,
    /// The secret is too short or too long.
    #[error("the secret has {0} bytes")]
    SecretLength(usize),
    /// No TLS session can be had with these.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Where machines of a cloud are told their secrets, and nobody is told of incidents.
    #[error("`{0}` is a link-local address")]
    LinkLocal(String),
    /// One that carries no message.
    #[error("`{0}` carries no message")]
    Method(String),
    /// No header has such a name.
    #[error("`{0}` is no name of a header")]
    HeaderName(String),
    /// No header has such a value, which may be a secret.
    #[error("the value of `{0}` is no text of a header")]
    HeaderValue(String),
    /// It is said by whoever sends.
    #[error("`{0}` is written by the collector")]
    HeaderTaken(String),
    /// It would be made of each message anew.
    #[error("`content-type` says what every body is, so it is no template")]
    ContentType,
    /// TLS without TLS.
    #[error("is about TLS, and the URL is http")]
    NoTls,
}

impl ConfigError {
    /// The key that it is about; `place` is the one of the URL.
    pub const fn key(&self, place: &'static str) -> &'static str {
        match self {
            Self::Url | Self::UserInfo | Self::LinkLocal(_) => place,
            Self::Secret | Self::SecretLength(_) => "secret_file",
            Self::Method(_) => "method",
            Self::HeaderName(_) | Self::HeaderValue(_) | Self::HeaderTaken(_) | Self::ContentType => "headers",
            Self::NoTls => "server_name",
            Self::Tls(error) => match error.key() {
                Some(key) => key,
                None => place,
            },
        }
    }

    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Url => "write it like https://hooks.example.org/tickbird",
            Self::UserInfo => "leave it out: the signature proves who sends",
            Self::Secret | Self::SecretLength(_) => "make one with: echo whsec_$(openssl rand -base64 32)",
            Self::Tls(error) => error.advice(),
            Self::LinkLocal(_) => "give the receiver an address that others can reach",
            Self::Method(_) => "write \"POST\", \"PUT\" or \"PATCH\"",
            Self::HeaderName(_) => "write letters, digits and `-`",
            Self::HeaderValue(_) => "write it in one line of ASCII letters",
            Self::HeaderTaken(_) => "leave it out",
            Self::ContentType => "write it without braces",
            Self::NoTls => "write an https URL, or leave it out",
        }
    }
}

/// Where to, and signed with what. Cannot be wrong; `Debug` shows neither path nor secret.
#[derive(Clone, PartialEq)]
pub struct Config {
    uri: Uri,
    place: Place,
    secret: Option<Zeroizing<Vec<u8>>>,
    tls: Option<Tls>,
    method: Method,
    headers: HeaderMap,
    timeout: Duration,
}

impl Config {
    /// A webhook at `url`, signed when there is a `secret` (`whsec_…`).
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(url: &str, secret: Option<&str>, trust: &Trust<'_>) -> Result<Self, ConfigError> {
        let uri: Uri = url.trim().parse().map_err(|_| ConfigError::Url)?;
        let authority = uri.authority().ok_or(ConfigError::Url)?;
        if authority.as_str().contains('@') {
            return Err(ConfigError::UserInfo);
        }
        let (default_port, is_tls) = match uri.scheme_str() {
            Some("http") => (80, false),
            Some("https") => (443, true),
            _ => return Err(ConfigError::Url),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(ConfigError::Url);
        }
        if host.parse().is_ok_and(connect::is_link_local) {
            return Err(ConfigError::LinkLocal(host));
        }
        let port = authority.port_u16().unwrap_or(default_port);
        if !is_tls && (trust.server_name.is_some() || trust.identity.is_some()) {
            return Err(ConfigError::NoTls);
        }
        let tls = is_tls.then(|| Tls::new(&host, trust, &[b"http/1.1"])).transpose()?;
        let secret = secret.map(decode).transpose()?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let place = Place { host, port };
        Ok(Self { uri, place, secret, tls, method: Method::POST, headers, timeout: TIMEOUT })
    }

    /// The same with another method, and headers beside those that each message has.
    ///
    /// # Errors
    /// When a request cannot have them.
    pub fn asking<'a>(
        mut self,
        method: Option<&str>,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ConfigError> {
        if let Some(wished) = method {
            self.method = carrying(wished).ok_or_else(|| ConfigError::Method(wished.to_owned()))?;
        }
        for (name, value) in headers {
            let name = own(name)?;
            let value = HeaderValue::from_str(value).map_err(|_| ConfigError::HeaderValue(name.to_string()))?;
            self.headers.insert(name, value);
        }
        Ok(self)
    }

    /// Whether a header may have another value with each message.
    ///
    /// # Errors
    /// When a request cannot have it, or cannot have it so.
    pub fn may_vary(name: &str) -> Result<(), ConfigError> {
        if own(name)? == header::CONTENT_TYPE { Err(ConfigError::ContentType) } else { Ok(()) }
    }

    /// The same with the head that was decided with a message.
    #[must_use]
    pub fn decided(&self, head: &Head) -> Self {
        let mut it = self.clone();
        it.method = head.method.as_deref().and_then(carrying).unwrap_or(it.method);
        for (name, value) in &head.headers {
            // Both were checked when they were made; a letter beyond ASCII goes as it is.
            if let (Ok(name), Ok(value)) = (own(name), HeaderValue::from_bytes(value.as_bytes())) {
                it.headers.insert(name, value);
            }
        }
        it
    }

    /// Whether what it takes is called JSON.
    pub fn takes_json(&self) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || essence.ends_with("+json")
    }

    /// Gives an attempt another time than ten seconds.
    #[must_use]
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where it goes, without the path.
    pub fn address(&self) -> String {
        self.place.to_string()
    }

    /// Makes one attempt; gives the status of the yes. The bytes of `body` are sent as they are.
    ///
    /// # Errors
    /// When no yes was heard; the error knows whether the receiver may have heard the message all the same.
    pub async fn send(&self, id: &str, at: Timestamp, body: &[u8]) -> Result<u16, NotifyError> {
        let request = self.request(id, at, body);
        let mut phase = Phase::Connecting;
        let attempt = tokio::time::timeout(self.timeout, self.attempt(request, &mut phase)).await;
        attempt.unwrap_or_else(|_| phase.timed_out(self.timeout))
    }

    async fn attempt(&self, request: Request<Full<Bytes>>, phase: &mut Phase) -> Result<u16, NotifyError> {
        let stream = self.place.dial().await?;
        match &self.tls {
            None => converse(stream, request, phase).await,
            Some(tls) => converse(tls.connect(stream, &self.place).await?, request, phase).await,
        }
    }

    fn request(&self, id: &str, at: Timestamp, body: &[u8]) -> Request<Full<Bytes>> {
        let timestamp = at.as_second().to_string();
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(path)
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::USER_AGENT, concat!("tickbird-collector/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", &timestamp);
        if let Some(secret) = &self.secret {
            let signature = HeaderValue::from_str(&signature(secret, id, &timestamp, body));
            request = request.header("webhook-signature", signature.expect("base 64 is printable"));
        }
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
        }
        request.body(Full::new(Bytes::copy_from_slice(body))).expect("its parts were checked when it was configured")
    }
}

fn carrying(method: &str) -> Option<Method> {
    METHODS.contains(&method).then(|| method.parse().ok()).flatten()
}

/// The name of a header that whoever sends does not write.
fn own(name: &str) -> Result<HeaderName, ConfigError> {
    let name: HeaderName = name.parse().map_err(|_| ConfigError::HeaderName(name.to_owned()))?;
    if TAKEN.contains(&name.as_str()) { Err(ConfigError::HeaderTaken(name.to_string())) } else { Ok(name) }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = self.tls.is_some();
        f.debug_struct("Config").field("address", &self.address()).field("tls", &tls).finish_non_exhaustive()
    }
}

async fn converse<S>(stream: S, request: Request<Full<Bytes>>, phase: &mut Phase) -> Result<u16, NotifyError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = hyper::client::conn::http1::Builder::new();
    let handshake = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(NotifyError::Broken)?;
    // Ends with this attempt, whatever way that ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    *phase = Phase::Sent;
    let answer = sender.send_request(request).await.map_err(NotifyError::Broken)?;
    let status = answer.status();
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|it| wished(it, Timestamp::now()));
    if status.is_success() {
        // The yes counts; the rest only lets the other side finish.
        *phase = Phase::Taken(status.as_u16());
        let mut body = answer.into_body();
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MAX_ANSWER {
                break;
            }
        }
        return Ok(status.as_u16());
    }
    Err(NotifyError::Answered { status: status.as_u16(), retry_after })
}

/// A wait as `Retry-After` asks for it (RFC 9110, section 10.2.3): in seconds, or until a date.
fn wished(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

fn signature(secret: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn decode(secret: &str) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    // Some tools leave the padding out.
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    let text = secret.trim().strip_prefix("whsec_").ok_or(ConfigError::Secret)?;
    let bytes = Zeroizing::new(engine.decode(text).map_err(|_| ConfigError::Secret)?);
    if SECRET.contains(&bytes.len()) { Ok(bytes) } else { Err(ConfigError::SecretLength(bytes.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_dGhlIHJlY2VpdmVyJ3Mgb3duIHNlY3JldCwgMzIgYnk=";

    fn mistake(url: &str, secret: Option<&str>, authorities: Option<&[u8]>) -> String {
        let trust = Trust { authorities, ..Trust::default() };
        Config::new(url, secret, &trust).expect_err("must be refused").to_string()
    }

    /// Computed with `printf 'a.1.b' | openssl dgst -sha256 -hmac "the receiver's own secret, 32 by" -binary | base64`.
    #[test]
    fn a_wait_is_asked_for_in_seconds_or_until_a_date() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().expect("a time");
        let seconds = |value: &str| wished(value, now).map(|it| it.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(30));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:40:00 GMT"), Some(0), "that is over");
        assert_eq!([seconds("soon"), seconds(""), seconds("-5")], [None; 3]);
    }

    #[test]
    fn the_signature_is_the_one_openssl_computes() {
        let secret = decode(SECRET).expect("32 bytes");
        assert_eq!(signature(&secret, "a", "1", b"b"), "v1,pU/IV9Qy3sdlLd0Owo+e+03HQIrkmQjmj11XhFqqVnU=");
        assert_eq!(decode(SECRET.trim_end_matches('=')).expect("without padding"), secret);
    }

    #[test]
    fn a_mistake_is_named_without_what_is_secret() {
        assert_eq!(mistake("hooks.example.org/x", None, None), "the URL is not an absolute http or https URL");
        assert_eq!(mistake("ftp://hooks.example.org", None, None), "the URL is not an absolute http or https URL");
        assert_eq!(mistake("https://me:pw@host/", None, None), "the URL holds a user name or password");
        for host in ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.1.1]:8080"] {
            assert!(mistake(&format!("http://{host}/x"), None, None).ends_with("is a link-local address"), "{host}");
        }
        assert_eq!(mistake("http://h/", Some("abc"), None), "the secret is not `whsec_` followed by base 64");
        assert_eq!(mistake("http://h/", Some("whsec_c2hvcnQ="), None), "the secret has 5 bytes");
        assert!(mistake("https://h/", None, Some(b"not PEM")).contains("no readable certificate"));
    }

    #[test]
    fn neither_path_nor_secret_is_shown() {
        let config = Config::new("https://[::1]:8443/T0KEN/x?k=v", Some(SECRET), &Trust::default()).expect("valid");
        let shown = format!("{config:?} {}", config.address());
        assert!(shown.contains("[::1]:8443") && !shown.contains("T0KEN") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn the_request_keeps_path_query_and_bytes() {
        let config =
            Config::new("http://hooks.example.org:8080/T0KEN/x?k=v", Some(SECRET), &Trust::default()).expect("valid");
        let request = config.request("msg_1", Timestamp::UNIX_EPOCH, b"{}");
        assert_eq!(request.uri(), "/T0KEN/x?k=v");
        let header = |name: &str| request.headers()[name].to_str().expect("text").to_owned();
        assert_eq!((header("host"), header("webhook-id")), ("hooks.example.org:8080".into(), "msg_1".into()));
        assert_eq!((header("webhook-timestamp"), header("content-type")), ("0".into(), "application/json".into()));
        let unsigned =
            Config::new("http://h", None, &Trust::default()).expect("valid").request("i", Timestamp::UNIX_EPOCH, b"");
        assert!(!unsigned.headers().contains_key("webhook-signature"));
        assert_eq!(unsigned.uri(), "/");
    }

    #[test]
    fn a_method_and_headers_are_what_is_asked_for_or_a_mistake() {
        let config = || Config::new("http://h/x", Some(SECRET), &Trust::default()).expect("valid");
        let headers = [("x-team", "db"), ("Content-Type", "application/vnd.pager+json; charset=utf-8")];
        let asking = config().asking(Some("PUT"), headers).expect("valid");
        let request = asking.request("msg_1", Timestamp::UNIX_EPOCH, b"{}");
        assert_eq!((request.method().as_str(), request.headers()["x-team"].as_bytes()), ("PUT", &b"db"[..]));
        assert_eq!(request.headers().get_all("content-type").iter().count(), 1);
        assert!(asking.takes_json() && request.headers().contains_key("webhook-signature"));
        assert!(!config().asking(None, [("content-type", "text/plain")]).expect("valid").takes_json());
        let wrong = |method, headers: &[(&'static str, &'static str)]| {
            let error = config().asking(method, headers.iter().copied()).expect_err("must be refused");
            (error.key("url"), error.to_string())
        };
        assert_eq!(wrong(Some("GET"), &[]), ("method", "`GET` carries no message".into()));
        assert_eq!(wrong(None, &[("a b", "c")]), ("headers", "`a b` is no name of a header".into()));
        let secret = wrong(None, &[("authorization", "Bearer s3cret\nx: y")]);
        assert_eq!(secret, ("headers", "the value of `authorization` is no text of a header".into()));
        assert_eq!(wrong(None, &[("Webhook-Id", "1")]), ("headers", "`webhook-id` is written by the collector".into()));
    }

    /// A reload goes by it.
    #[test]
    fn a_webhook_is_another_one_when_anything_of_it_is() {
        fn trust(pem: &str) -> Trust<'_> {
            Trust { authorities: Some(pem.as_bytes()), ..Trust::default() }
        }
        let made = || rcgen::generate_simple_self_signed(["h".to_owned()]).expect("makes one").cert.pem();
        let (one, two) = (made(), made());
        let config = |url, pem: &str| Config::new(url, Some(SECRET), &trust(pem)).expect("valid");
        let known = config("https://h/x", &one);
        assert!(known == config("https://h/x", &one), "made of the same");
        let named = Trust { server_name: Some("g"), ..trust(&one) };
        let other_secret = Some("whsec_b3RoZXIgcmVjZWl2ZXIncyBzZWNyZXQsIDMyIGJ5dGU=");
        for other in [
            config("https://h/y", &one),
            config("https://h/x", &two),
            Config::new("https://h/x", Some(SECRET), &named).expect("valid"),
            Config::new("https://h/x", other_secret, &trust(&one)).expect("valid"),
            config("https://h/x", &one).within(Duration::from_secs(1)),
            config("https://h/x", &one).asking(Some("PUT"), []).expect("valid"),
            config("https://h/x", &one).asking(None, [("x-team", "db")]).expect("valid"),
        ] {
            assert!(known != other, "{other:?}");
        }
    }

    #[test]
    fn a_head_that_was_decided_goes_before_what_is_configured_and_never_before_what_is_signed() {
        let config = Config::new("http://h/x", Some(SECRET), &Trust::default()).expect("valid");
        let config = config.asking(Some("PUT"), [("x-team", "db"), ("x-kept", "yes")]).expect("valid");
        let headers = [("x-team", "shop \u{e9}"), ("webhook-id", "msg_2"), ("a b", "c"), ("x-bad", "a\nb")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let request = config.decided(&Head { method: Some("PATCH".into()), headers }).request(
            "msg_1",
            Timestamp::UNIX_EPOCH,
            b"{}",
        );
        let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
        assert_eq!((request.method().as_str(), header("x-team")), ("PATCH", Some("shop \u{e9}".as_bytes())));
        assert_eq!((header("x-kept"), header("webhook-id")), (Some(&b"yes"[..]), Some(&b"msg_1"[..])));
        assert_eq!((header("x-bad"), header("content-type")), (None, Some(&b"application/json"[..])));
        for (method, asked) in [(None, "PUT"), (Some("GET"), "PUT"), (Some("POST"), "POST")] {
            let head = Head { method: method.map(str::to_owned), ..Head::default() };
            let request = config.decided(&head).request("msg_1", Timestamp::UNIX_EPOCH, b"{}");
            assert_eq!(request.method().as_str(), asked);
        }
        let refused = |name| Config::may_vary(name).expect_err("must be refused").to_string();
        assert_eq!(refused("Content-Type"), "`content-type` says what every body is, so it is no template");
        assert_eq!(refused("webhook-signature"), "`webhook-signature` is written by the collector");
        Config::may_vary("x-team").expect("may vary");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(url in "\\PC{0,60}", secret in "\\PC{0,60}", pem in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let trust = Trust { authorities: Some(&pem), server_name: Some(&secret), identity: Some((&pem, &pem)) };
            let _ = Config::new(&url, Some(&secret), &trust);
            let _ = Config::new(&format!("https://{url}"), None, &trust);
            let _ = Config::new("http://h/", None, &Trust::default()).map(|it| it.asking(Some(&url), [(&*secret, &*url)]));
        }
    }
}
