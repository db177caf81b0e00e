//! A receiver that takes letters: each goes to one mail server, over TLS unless the configuration says otherwise.
//!
//! Who writes to whom is read from the configuration when a letter is sent, so that a corrected address helps what waits; all
//! else of it was decided before. `Message-ID` is made of the message's own id and so the same on each attempt.

mod recipients;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder, SinglePart};
use tickbird_shared::Timestamp;
use zeroize::Zeroizing;

use super::connect::{self, Place, Tls, TlsError, Trust};
use super::smtp::Session;
use super::{Answer, NotifyError, Phase};
use crate::alert::Letter;
use recipients::Recipients;

/// An attempt, from looking up the name to the answer, takes at most this long unless the configuration says otherwise: servers
/// that look for viruses answer late.
const TIMEOUT: Duration = Duration::from_secs(30);

/// So long a letter waits for a recipient who is put off, unless the configuration says otherwise: greylisting takes five minutes and less, and
/// attempts are up to two apart.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is said in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// That TLS is wanted, and nothing more.
    #[default]
    StartTls,
    /// Nothing.
    Implicit,
    /// Everything.
    Plain,
}

impl Security {
    /// The port where servers listen for it.
    const fn port(self) -> u16 {
        match self {
            Self::StartTls => 587,
            Self::Implicit => 465,
            Self::Plain => 25,
        }
    }
}

/// What the configuration says.
#[derive(Default)]
pub struct Settings {
    /// `host:port`, or a host.
    pub smarthost: String,
    /// Who writes.
    pub from: String,
    /// To whom.
    pub to: Vec<String>,
    /// What is said in the clear.
    pub security: Security,
    /// Name and password.
    pub login: Option<(String, Zeroizing<String>)>,
    /// What the collector calls itself; none: the host's name, or its address.
    pub hello: Option<String>,
    /// How long an attempt may take.
    pub timeout: Option<Duration>,
    /// How long a letter waits for a recipient whom the server puts off while it takes others.
    pub patience: Option<Duration>,
    /// PEM of authorities to trust beside the public ones.
    pub authorities: Option<String>,
    /// The name in the server's certificate, where that is not the host's.
    pub server_name: Option<String>,
    /// PEM of a certificate to show, and of its key.
    pub identity: Option<(String, Zeroizing<String>)>,
}

/// Why no letter can be sent so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is no place.
    #[error("`{0}` is not a host and a port")]
    Smarthost(String),
    /// Where machines of a cloud are told their secrets, and nobody is told of incidents.
    #[error("`{0}` is a link-local address")]
    LinkLocal(String),
    /// Not an address of a mailbox.
    #[error("`{0}` is no address of a mailbox")]
    From(String),
    /// Not an address of a mailbox.
    #[error("`{0}` is no address of a mailbox")]
    To(String),
    /// Nobody.
    #[error("names nobody")]
    ToNobody,
    /// A password in the clear.
    #[error("would be told in the clear")]
    LoginInTheClear,
    /// Letters that no host has in its name.
    #[error("`{0}` is no name of a host")]
    Hello(String),
    /// TLS without TLS.
    #[error("is about TLS, and `tls` is none")]
    NoTls,
    /// No TLS session can be had with these.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ConfigError {
    /// The key that it is about.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Smarthost(_) | Self::LinkLocal(_) => "smarthost",
            Self::From(_) => "from",
            Self::To(_) | Self::ToNobody => "to",
            Self::LoginInTheClear => "user",
            Self::Hello(_) => "hello",
            Self::NoTls => "server_name",
            Self::Tls(error) => match error.key() {
                Some(key) => key,
                None => "smarthost",
            },
        }
    }

    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Smarthost(_) => "write smarthost = \"mail.example.org:587\"",
            Self::LinkLocal(_) => "give a server that others can reach",
            Self::From(_) => "write from = \"Tickbird <tickbird@example.org>\"",
            Self::To(_) | Self::ToNobody => "write to = [\"oncall@example.org\"]",
            Self::LoginInTheClear => "write tls = \"starttls\" or \"implicit\", or leave user and password_file out",
            Self::Hello(_) => "write hello = \"collector.example.org\"",
            Self::NoTls => "write tls = \"starttls\" or \"implicit\", or leave it out",
            Self::Tls(error) => error.advice(),
        }
    }
}

/// Where to, and what every letter has. Cannot be wrong; `Debug` does not show the password. Clones know together who is put off.
#[derive(Clone)]
pub struct Config {
    place: Place,
    security: Security,
    tls: Option<Tls>,
    from: Mailbox,
    to: Vec<Mailbox>,
    login: Option<(String, Zeroizing<String>)>,
    hello: Option<String>,
    timeout: Duration,
    patience: Duration,
    recipients: Arc<Mutex<Recipients>>,
}

impl PartialEq for Config {
    /// As they are configured, whatever became of letters.
    fn eq(&self, other: &Self) -> bool {
        let Self { place, security, tls, from, to, login, hello, timeout, patience, recipients: _ } = self;
        (place, security, tls, from) == (&other.place, &other.security, &other.tls, &other.from)
            && (to, login, hello) == (&other.to, &other.login, &other.hello)
            && (timeout, patience) == (&other.timeout, &other.patience)
    }
}

/// A letter, who is asked to take it, and who was refused.
type Sending<'s> = (&'s [u8], &'s [String], &'s mut Vec<(usize, u16)>);

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, security) = (self.address(), self.security);
        f.debug_struct("Config").field("address", &address).field("security", &security).finish_non_exhaustive()
    }
}

impl Config {
    /// Letters as they are configured.
    ///
    /// # Errors
    /// Everything that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Vec<ConfigError>> {
        let Settings {
            smarthost,
            from,
            to,
            security,
            login,
            hello,
            timeout,
            patience,
            authorities,
            server_name,
            identity,
        } = settings;
        let mut errors = Vec::new();
        let place = place(&smarthost, security.port()).map_err(|error| errors.push(error)).ok();
        let from = mailbox(&from).ok_or(ConfigError::From(from)).map_err(|error| errors.push(error)).ok();
        if to.is_empty() {
            errors.push(ConfigError::ToNobody);
        }
        let mut found = Vec::with_capacity(to.len());
        for address in to {
            match mailbox(&address) {
                Some(it) => found.push(it),
                None => errors.push(ConfigError::To(address)),
            }
        }
        if login.is_some() && security == Security::Plain {
            errors.push(ConfigError::LoginInTheClear);
        }
        if let Some(name) = hello.as_ref().filter(|it| !is_host(it)) {
            errors.push(ConfigError::Hello(name.clone()));
        }
        let trust = Trust {
            authorities: authorities.as_deref().map(str::as_bytes),
            server_name: server_name.as_deref(),
            identity: identity.as_ref().map(|(chain, key)| (chain.as_bytes(), key.as_bytes())),
        };
        if security == Security::Plain && (trust.server_name.is_some() || trust.identity.is_some()) {
            errors.push(ConfigError::NoTls);
        }
        let tls = match &place {
            Some(place) if security != Security::Plain => {
                Tls::new(&place.host, &trust, &[]).map_err(|error| errors.push(error.into())).ok()
            }
            _ => None,
        };
        match (place, from) {
            (Some(place), Some(from)) if errors.is_empty() => {
                let (timeout, patience) = (timeout.unwrap_or(TIMEOUT), patience.unwrap_or(PATIENCE));
                let recipients = Arc::default();
                Ok(Self { place, security, tls, from, to: found, login, hello, timeout, patience, recipients })
            }
            _ => Err(errors),
        }
    }

    /// Where it goes.
    pub fn address(&self) -> String {
        self.place.to_string()
    }

    /// Makes one attempt with what was stored as `body`, for those recipients who do not have it.
    ///
    /// # Errors
    /// When no yes was heard, or somebody is waited for; the error knows whether the server may have taken the letter all the same.
    pub async fn send(&self, id: &str, at: Timestamp, body: &[u8]) -> Result<Answer, NotifyError> {
        let thread = Letter::read(body, at).thread;
        let letter = self.written(id, at, body);
        let known = || self.recipients.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = known().without(id, thread.as_deref(), self.to.iter().map(|it| it.email.to_string()));
        let (mut phase, mut refused) = (Phase::Connecting, Vec::new());
        let mut message = (&*letter, &*asked.now, &mut refused);
        let attempt = tokio::time::timeout(self.timeout, self.attempt(&mut message, &mut phase)).await;
        let code = attempt.unwrap_or_else(|_| phase.timed_out(self.timeout).map(Some))?;
        let result = known().after((id, thread.as_deref()), &asked, &refused, code, (Instant::now(), self.patience));
        if let Ok(answer) = &result {
            for (recipient, code) in &answer.left_out {
                tracing::warn!(server = %self.place, recipient, code, "refused, while others were not");
            }
        }
        result
    }

    /// Letters that wait for some of their recipients only: what follows them need not.
    pub(super) fn partly(&self) -> Vec<String> {
        self.recipients.lock().unwrap_or_else(PoisonError::into_inner).partly()
    }

    /// Letters that wait for nobody any more, whatever became of them.
    pub(super) fn forget(&self, ids: &[String]) {
        self.recipients.lock().unwrap_or_else(PoisonError::into_inner).forget(ids);
    }

    /// The letter as the server gets it.
    pub fn written(&self, id: &str, at: Timestamp, body: &[u8]) -> Vec<u8> {
        let letter = Letter::read(body, at);
        let domain = self.from.email.domain();
        let header = |name, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned());
        let date = SystemTime::from(letter.decided_at.max(Timestamp::UNIX_EPOCH));
        let mut builder = MessageBuilder::new().from(self.from.clone()).date(date).subject(letter.subject);
        for mailbox in &self.to {
            builder = builder.to(mailbox.clone());
        }
        builder = builder.message_id(Some(format!("<{id}@{domain}>")));
        if let Some(thread) = letter.thread {
            // Not the id of the first letter: that may have been overtaken before it was sent.
            let thread = format!("<{thread}@{domain}>");
            builder = builder.in_reply_to(thread.clone()).references(thread);
        }
        builder = builder.raw_header(header("Auto-Submitted", "auto-generated"));
        let written = builder.singlepart(SinglePart::plain(letter.text));
        written.expect("it has a sender, and a recipient").formatted()
    }

    async fn attempt(&self, message: &mut Sending<'_>, phase: &mut Phase) -> Result<Option<u16>, NotifyError> {
        let stream = self.place.dial().await?;
        let hello = self.hello.clone().or_else(host_name).unwrap_or_else(|| literal(&stream));
        let mut session = match (&self.tls, self.security) {
            (Some(tls), Security::Implicit) => {
                Session::open(tls.connect(stream, &self.place).await?, &hello, phase).await?
            }
            (Some(tls), _) => Session::open(stream, &hello, phase).await?.start_tls(tls, &self.place, &hello).await?,
            (None, _) => Session::open(stream, &hello, phase).await?,
        };
        let sent = self.converse(&mut session, message).await;
        session.quit().await;
        sent
    }

    async fn converse(
        &self,
        session: &mut Session<'_>,
        (letter, to, refused): &mut Sending<'_>,
    ) -> Result<Option<u16>, NotifyError> {
        if let Some((user, password)) = &self.login {
            session.log_in(user, password).await?;
        }
        session.send(self.from.email.as_ref(), to, letter, refused).await
    }
}

fn place(smarthost: &str, default_port: u16) -> Result<Place, ConfigError> {
    let wrong = || ConfigError::Smarthost(smarthost.to_owned());
    let (host, port) = match smarthost.trim().rsplit_once(':') {
        // The colons of an address without a port.
        Some((before, _)) if before.contains(':') && !before.ends_with(']') => (smarthost.trim(), default_port),
        Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
        None => (smarthost.trim(), default_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.parse().is_ok_and(connect::is_link_local) {
        return Err(ConfigError::LinkLocal(host));
    }
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    if port > 0 && (is_address || is_host(&host)) { Ok(Place { host, port }) } else { Err(wrong()) }
}

/// Letters of ASCII only: not every server takes others.
fn mailbox(text: &str) -> Option<Mailbox> {
    text.trim().parse().ok().filter(|it: &Mailbox| it.email.to_string().is_ascii())
}

fn is_host(name: &str) -> bool {
    let is_letter = |it: char| it.is_ascii_alphanumeric() || it == '-';
    name.len() <= 253 && name.split('.').all(|it| !it.is_empty() && it.chars().all(is_letter))
}

/// The host's own name where it is a whole one.
fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    (name.contains('.') && is_host(&name)).then_some(name)
}

/// What whoever has no name is called: `[192.0.2.1]`.
fn literal(stream: &tokio::net::TcpStream) -> String {
    match stream.local_addr().map(|it| it.ip().to_canonical()) {
        Ok(std::net::IpAddr::V6(address)) => format!("[IPv6:{address}]"),
        Ok(std::net::IpAddr::V4(address)) => format!("[{address}]"),
        Err(_) => "[127.0.0.1]".into(),
    }
}

#[cfg(test)]
mod tests;
