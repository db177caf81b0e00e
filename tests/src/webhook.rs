//! A receiver of webhooks that records what it hears and checks every signature itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::Sha256;

use crate::library::python_modules;
use crate::process::{installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::until;

const SECRET: &[u8; 32] = b"the receiver's own secret, 32 by";
/// Where the request's method is kept among its headers.
const METHOD: &str = ":method";
/// No webhook is larger.
const LARGEST: usize = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Raises an error at the first signature that is not right.
const BELIEVES: &str = "import json, sys
from standardwebhooks.webhooks import Webhook
webhook = Webhook(open(sys.argv[1]).read().strip())
print(sum(webhook.verify(body, head) is not None for body, head in json.load(open(sys.argv[2]))))";

/// How a receiver answers from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// 204.
    Accepts,
    /// 204, so late: it has heard the message, whether or not somebody waits for its word.
    Late(Duration),
    /// 500.
    Fails,
    /// 413 to whatever says that something fires, as a gateway does that finds it too large; 204 to everything else.
    RefusesFirings,
    /// Takes the request and closes the connection without a word.
    SaysNothing,
    /// Stops the sender (`SIGSTOP`), whose process this is, and answers then; later ones as [`Self::SaysNothing`].
    AnswersAStopped(u32),
    /// The answer to a stopped sender is on its way; then [`Self::SaysNothing`].
    Answering,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Message {
    /// When its last byte came.
    pub at: Instant,
    /// `webhook-id`.
    pub id: String,
    /// `POST`.
    pub method: String,
    /// Every header.
    pub head: Vec<(String, String)>,
    /// The body as it was signed.
    pub body: String,
    /// The body, read.
    pub json: Value,
    /// Whether it was answered with 2xx.
    pub accepted: bool,
}

impl Message {
    /// `incident.firing`, `incident.resolved` and so on.
    pub fn kind(&self) -> &str {
        self.json["type"].as_str().unwrap_or_default()
    }

    /// A header; names are in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Id of the check of the incident.
    pub fn check(&self) -> &str {
        self.json["incident"]["check"].as_str().unwrap_or_default()
    }
}

/// What it was told, and what was wrong with what it was told.
#[derive(Debug, Default)]
struct Heard {
    messages: Vec<Message>,
    /// Requests that a careful receiver refuses: a missing header, a signature that is not ours.
    refused: Vec<String>,
}

/// The receiver: a server on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct Webhook {
    port: u16,
    secret_file: PathBuf,
    manner: Arc<Mutex<Manner>>,
    /// Seconds that its clock is ahead of the right time.
    ahead: Arc<AtomicI64>,
    heard: Arc<Mutex<Heard>>,
}

impl Webhook {
    /// Listens until the process ends.
    pub fn start(stage: &Stage) -> Result<Self, StageError> {
        Self::listen(stage, true)
    }

    /// One that asks for no signature, as those of a chat do.
    pub fn start_unsigned(stage: &Stage) -> Result<Self, StageError> {
        Self::listen(stage, false)
    }

    fn listen(stage: &Stage, is_signed: bool) -> Result<Self, StageError> {
        let secret_file = stage.room("webhook")?.join("secret");
        std::fs::write(&secret_file, format!("whsec_{}\n", BASE64.encode(SECRET)))
            .map_err(StageError::system("write the webhook's secret"))?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(StageError::system("bind a free port"))?;
        let port = listener.local_addr().map_err(StageError::system("read the port"))?.port();
        let manner = Arc::new(Mutex::new(Manner::Accepts));
        let it = Self { port, secret_file, manner, ahead: Arc::default(), heard: Arc::default() };
        let (manner, ahead, heard) = (it.manner.clone(), it.ahead.clone(), it.heard.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (manner, ahead, heard) = (manner.clone(), ahead.clone(), heard.clone());
                thread::spawn(move || converse(&stream, is_signed, &manner, &ahead, &heard));
            }
        });
        Ok(it)
    }

    /// How it answers now.
    pub fn manner(&self) -> Manner {
        *lock(&self.manner)
    }

    /// Changes how it answers.
    pub fn becomes(&self, manner: Manner) {
        *lock(&self.manner) = manner;
    }

    /// Sets its clock to so many seconds ahead of the right time; messages of another time it refuses.
    pub fn is_ahead_by(&self, seconds: i64) {
        self.ahead.store(seconds, Ordering::Relaxed);
    }

    /// Where to post to.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// The file that holds the shared secret (`whsec_…`).
    pub fn secret_file(&self) -> &Path {
        &self.secret_file
    }

    /// Everything it accepted, in the order it came.
    ///
    /// # Errors
    /// When anything came whose headers or signature a careful receiver refuses.
    pub fn heard(&self) -> Result<Vec<Message>, StageError> {
        let heard = lock(&self.heard);
        match heard.refused.first() {
            Some(said) => Err(StageError::Malformed { what: "a webhook".into(), found: said.clone() }),
            None => Ok(heard.messages.iter().filter(|it| it.accepted).cloned().collect()),
        }
    }

    /// Every attempt, accepted or not.
    pub fn attempts(&self) -> Vec<Message> {
        lock(&self.heard).messages.clone()
    }

    /// Asks the Python library of Standard Webhooks whether it believes everything that was accepted; gives how much that is.
    ///
    /// # Errors
    /// With what it says of the first that it does not believe.
    pub fn is_believed_elsewhere(&self) -> Result<usize, StageError> {
        let heard = self.heard()?;
        let of = |it: &Message| {
            let head: serde_json::Map<_, _> = it.head.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            serde_json::json!([it.body, head])
        };
        let messages = Value::Array(heard.iter().map(of).collect()).to_string();
        let file = self.secret_file.with_file_name(format!("heard-{}.json", heard.len()));
        std::fs::write(&file, messages).map_err(StageError::system("write what was heard"))?;
        let mut command = Command::new(installed("/usr/bin/python3", "python3")?);
        command.env("PYTHONPATH", python_modules()).args(["-c", BELIEVES]);
        let said = run(command.arg(&self.secret_file).arg(&file))?;
        let count = said.trim().parse().ok().filter(|it| *it == heard.len());
        count.ok_or(StageError::Malformed { what: "what standardwebhooks believes".into(), found: said })
    }

    /// Waits for a message that `wanted` likes.
    pub fn hears(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Message, StageError> {
        until(format!("the webhook hears {what}"), within, || {
            let heard = self.heard().map_err(|error| error.to_string())?;
            heard.iter().find(|it| wanted(it)).cloned().ok_or_else(|| titles(&heard))
        })
    }
}

/// A predicate for [`Webhook::hears`]: the incident of this check begins.
pub fn firing(check: &str) -> impl Fn(&Message) -> bool {
    move |it| it.kind() == "incident.firing" && it.check() == check
}

/// A predicate for [`Webhook::hears`]: the incident of this check ends.
pub fn resolved(check: &str) -> impl Fn(&Message) -> bool {
    move |it| it.kind() == "incident.resolved" && it.check() == check
}

/// What was heard, in one line, for an error.
pub fn titles(messages: &[Message]) -> String {
    let titles: Vec<String> = messages.iter().map(|it| format!("{} {}", it.kind(), it.check())).collect();
    format!("{} messages: {}", titles.len(), titles.join(", "))
}

/// One request and its answer; a connection that does not even send one is left alone.
fn converse(stream: &TcpStream, is_signed: bool, manner: &Mutex<Manner>, ahead: &AtomicI64, heard: &Mutex<Heard>) {
    let _ = stream.set_read_timeout(Some(TIMEOUT));
    let mut reader = BufReader::new(stream);
    // The sender may keep the connection for more.
    while let Some((head, body)) = read_request(&mut reader) {
        let now = {
            let mut now = lock(manner);
            let before = *now;
            if let Manner::AnswersAStopped(sender) = before {
                // Before the answer leaves: what the sender makes of it is nothing.
                stop(sender);
                *now = Manner::Answering;
            }
            before
        };
        let fires = String::from_utf8_lossy(&body).contains("\"incident.firing\"");
        let accepted = match now {
            Manner::Accepts | Manner::Late(_) | Manner::AnswersAStopped(_) => true,
            Manner::RefusesFirings => !fires,
            Manner::Fails | Manner::SaysNothing | Manner::Answering => false,
        };
        {
            let mut heard = lock(heard);
            match check(&head, body, accepted, ahead.load(Ordering::Relaxed), is_signed) {
                Ok(message) => heard.messages.push(message),
                Err(wrong) if accepted => heard.refused.push(wrong),
                Err(_) => (), // it is not accepted anyway
            }
        }
        if let Manner::Late(by) = now {
            thread::sleep(by);
        }
        let mut answer = stream;
        let written = match now {
            Manner::RefusesFirings if fires => {
                answer.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n")
            }
            Manner::Accepts | Manner::Late(_) | Manner::AnswersAStopped(_) | Manner::RefusesFirings => {
                answer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            }
            Manner::Fails => answer.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"),
            Manner::SaysNothing | Manner::Answering => return,
        };
        if let Manner::AnswersAStopped(_) = now {
            *lock(manner) = Manner::SaysNothing;
        }
        if written.is_err() {
            return;
        }
    }
}

fn stop(process: u32) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        // One that has ended answers to nobody either.
        let _ = kill_process(pid, Signal::STOP);
    }
}

type Head = Vec<(String, String)>;

fn read_request(reader: &mut impl BufRead) -> Option<(Head, Vec<u8>)> {
    let mut head = Head::new();
    loop {
        let mut line = String::new();
        if reader.take(64 << 10).read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if head.is_empty() {
            // The first line is no header, and is kept as one that no header is called.
            head.push((METHOD.to_owned(), line.split(' ').next().unwrap_or_default().to_owned()));
            continue;
        }
        if let Some((name, value)) = line.split_once(':') {
            head.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let length: usize = header(&head, "content-length").and_then(|it| it.parse().ok())?;
    let mut body = vec![0; length.min(LARGEST)];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn header<'h>(head: &'h Head, name: &str) -> Option<&'h str> {
    head.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
}

/// Reads a request as the Standard Webhooks specification tells a receiver to.
fn check(head: &Head, body: Vec<u8>, accepted: bool, ahead: i64, is_signed: bool) -> Result<Message, String> {
    let at = Instant::now();
    let wanted = |name: &str| header(head, name).ok_or_else(|| format!("no header `{name}`"));
    let (id, timestamp) = (wanted("webhook-id")?.to_owned(), wanted("webhook-timestamp")?);
    let body = String::from_utf8(body).map_err(|_| "the body is no UTF-8".to_owned())?;
    let ours = signature(&id, timestamp, &body);
    if is_signed && !wanted("webhook-signature")?.split(' ').any(|it| it.strip_prefix("v1,") == Some(&ours)) {
        return Err(format!("the signature of {id} is not ours"));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    match timestamp.parse::<u64>() {
        Ok(sent) if sent.abs_diff(now.saturating_add_signed(ahead)) <= 300 => (),
        _ => return Err(format!("timestamp `{timestamp}` is not of now")),
    }
    let json = serde_json::from_str(&body).map_err(|error| format!("the body is no JSON: {error}"))?;
    let method = header(head, METHOD).unwrap_or_default().to_owned();
    Ok(Message { at, id, method, head: head.clone(), body, json, accepted })
}

fn signature(id: &str, timestamp: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("HMAC takes a key of any length");
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    BASE64.encode(mac.finalize().into_bytes())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while it held one has failed the scenario already.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(signature: &str) -> Result<Message, String> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let signature = signature.replace("OURS", &super::signature("msg_1", &now.to_string(), "{}"));
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(str::to_owned);
        let head = names.into_iter().zip(["msg_1".to_owned(), now.to_string(), signature]).collect();
        check(&head, b"{}".to_vec(), true, 0, true)
    }

    #[test]
    fn only_what_is_signed_with_the_secret_is_believed() {
        assert!(request("v1,OURS").is_ok());
        assert!(request("v1,b3RoZXI= v1,OURS").is_ok(), "a rotated secret sends two");
        assert!(request("v1,b3RoZXI=").is_err_and(|wrong| wrong.contains("signature of msg_1")));
        assert!(request("OURS").is_err(), "without its version it is none");
    }

    /// Computed with `printf 'a.1.b' | openssl dgst -sha256 -hmac "the receiver's own secret, 32 by" -binary | base64`.
    #[test]
    fn the_signature_is_the_one_openssl_computes() {
        assert_eq!(signature("a", "1", "b"), "pU/IV9Qy3sdlLd0Owo+e+03HQIrkmQjmj11XhFqqVnU=");
    }
}
