//! `receiver …`: who is told, whether it takes what it is told, and what it never took.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::table::{plain, table, time};
use super::{CliError, Where, now, read_config, say};
use crate::alert;
use crate::config::Config;
use crate::notify::Destination;
use crate::store::{OutboxRow, Resent};
use crate::token::DEFAULT_TENANT;

/// Dead letters that are shown at once.
const SHOWN: u32 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Receiver {
    List(List),
    Test(Test),
    Dead(Dead),
    Resend(Resend),
}

/// Lists the receivers of the configuration, and how many messages wait for each or were given up.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
}

/// Shows a message as a receiver would get it, and with --send sends it.
///
/// Its type is `receiver.test`, and no incident is behind it. Method and headers stand before it where templates made them. Sent, it is signed and answered like any other; exit code 1 says
/// that the receiver did not take it, and why.
#[derive(Debug, Args)]
pub(super) struct Test {
    /// Name of the receiver in the configuration.
    name: String,
    /// Sends it, once.
    #[arg(long)]
    send: bool,
    #[command(flatten)]
    at: Where,
}

/// Lists messages that were given up, oldest first: a receiver did not take them for seven days, or said for a minute that it is
/// this message which it does not take (400, 413, 422, or 5xx to a letter).
#[derive(Debug, Args)]
pub(super) struct Dead {
    /// Only of this receiver.
    name: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// Tries a message once more that was given up, with the same id and the same bytes.
///
/// A serving collector takes it up within seconds. One that was followed by another about the same incident, or says what is true
/// no more, is left alone: the receiver would believe what is over.
#[derive(Debug, Args)]
pub(super) struct Resend {
    /// Id of the message, as in `receiver dead`.
    id: String,
    #[command(flatten)]
    at: Where,
}

impl Receiver {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self {
            Self::List(it) => it.run(),
            Self::Test(it) => it.run(),
            Self::Dead(it) => it.run(),
            Self::Resend(it) => it.run(),
        }
    }
}

impl List {
    fn run(self) -> Result<(), CliError> {
        let config = read_config(&self.at.directory().config())?;
        let writer = self.at.writer()?;
        let mut found = Vec::new();
        for (name, destination) in &config.destinations {
            let (waiting, since) = writer.rows().outbox_backlog(name)?;
            let dead = writer.rows().outbox_dead(name)?;
            found.push((name, destination.address(), waiting, since, dead));
        }
        let of = |(name, address, waiting, since, dead): &(&String, String, u64, _, u64)| json!({ "name": name, "address": address, "waiting": waiting, "waiting_since": since, "dead": dead });
        self.at.print(&json!({ "receivers": found.iter().map(of).collect::<Vec<_>>() }), || {
            let of = |(name, address, waiting, since, dead): &(&String, String, u64, Option<_>, u64)| {
                let since = since.map(time).unwrap_or_default();
                [(*name).clone(), address.clone(), waiting.to_string(), since, dead.to_string()]
            };
            let headings = ["RECEIVER", "ADDRESS", "WAITING", "SINCE", "DEAD"];
            table(headings, &found.iter().map(of).collect::<Vec<_>>())
        })
    }
}

fn find(config: Config, name: &str) -> Result<(alert::Receiver, Destination), CliError> {
    let receiver = config.policy.receivers.into_iter().find(|it| it.name == name);
    let destination = config.destinations.into_iter().find(|(it, _)| it == name).map(|(_, it)| it);
    receiver.zip(destination).ok_or_else(|| CliError::Unknown { kind: "receiver", id: name.to_owned() })
}

impl Test {
    fn run(self) -> Result<(), CliError> {
        let (receiver, destination) = find(read_config(&self.at.directory().config())?, &self.name)?;
        let now = now();
        let (id, stored) = alert::sample(DEFAULT_TENANT, &receiver, now);
        let (head, body) = alert::Head::split(&stored);
        let document: Value = serde_json::from_slice(body).unwrap_or_default();
        let address = destination.address();
        let mut answer = None;
        if self.send {
            // A second one in the process would make rustls panic at first use; this one is named everywhere all the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(CliError::Runtime)?;
            answer = Some(runtime.block_on(destination.send(&id, now, &stored, &|| false))?.to_string());
        }
        let head = head.map(|it| json!({ "method": it.method, "headers": it.headers }));
        let json = json!({
            "receiver": self.name, "address": address, "sent": self.send, "answer": answer, "head": head, "message": document,
        });
        self.at.print(&json, || destination.shown(&id, now, &stored))?;
        if let Some(answer) = answer.filter(|_| !self.at.json) {
            say(&format!("{address} took it: {answer}\n"));
        }
        Ok(())
    }
}

impl Dead {
    fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        let found = writer.rows().dead_letters(DEFAULT_TENANT, self.name.as_deref(), SHOWN)?;
        let of = |it: &OutboxRow| {
            json!({
                "id": it.id,
                "receiver": it.receiver,
                "incident": it.incident,
                "kind": it.kind,
                "decided_at": it.decided_at,
                "given_up_at": it.settled_at,
                "attempts": it.attempts,
                "uncertain": it.uncertain,
                "last_error": it.last_error(),
                "failures": it.failures(),
            })
        };
        self.at.print(&json!({ "dead": found.iter().map(of).collect::<Vec<_>>() }), || {
            let of = |it: &OutboxRow| {
                [
                    it.id.clone(),
                    it.receiver.clone(),
                    it.kind.clone(),
                    it.incident.clone(),
                    time(it.decided_at),
                    it.attempts.to_string(),
                    plain(it.last_error().unwrap_or_default()),
                ]
            };
            let headings = ["MESSAGE", "RECEIVER", "KIND", "INCIDENT", "DECIDED", "ATTEMPTS", "LAST ERROR"];
            table(headings, &found.iter().map(of).collect::<Vec<_>>())
        })
    }
}

impl Resend {
    fn run(self) -> Result<(), CliError> {
        let config = read_config(&self.at.directory().config())?;
        let mut writer = self.at.writer()?;
        // Nobody would take it up.
        if let Some(message) = writer.rows().message(DEFAULT_TENANT, &self.id)? {
            find(config, &message.receiver)?;
        }
        let transaction = writer.transaction()?;
        match transaction.resend(DEFAULT_TENANT, &self.id, now())? {
            Resent::Waits => transaction.commit()?,
            Resent::Unknown => return Err(CliError::Unknown { kind: "message", id: self.id }),
            Resent::NotDead(state) => return Err(CliError::NotDead { id: self.id, state: state.as_str() }),
            Resent::Outdated(by) => return Err(CliError::Outdated { id: self.id, by }),
            Resent::Followed(by) => return Err(CliError::Followed { id: self.id, by }),
        }
        self.at.print(&json!({ "id": self.id, "waits": true }), || format!("{} waits to be sent", self.id))
    }
}
