//! `token …`: who may enrol agents, who may ask the API.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tickbird_shared::units::parse_duration;
use tickbird_shared::{Labels, Timestamp};

use super::table::{labels, table, time};
use super::{CliError, Where, now, read_config, say};
use crate::pki::{self, Keyring};
use crate::store::TokenRow;
use crate::token::{self, DEFAULT_TENANT, Terms};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    Create(Create),
    CreateApi(CreateApi),
    List(List),
    Revoke(Revoke),
}

/// Makes an enrolment token, prints it once and keeps only its hash.
#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    at: Where,
    /// How long it may be used.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    ttl: Duration,
    /// How many agents it may enrol.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// A label of the agents it enrols, which wins over their own; may be given again.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Its agents are forgotten an hour after they were last heard: for machines that come and go.
    #[arg(long)]
    ephemeral: bool,
}

/// Makes a token for the API, prints it once and keeps only its hash.
#[derive(Debug, Args)]
pub(super) struct CreateApi {
    /// Who it is for; shown in the list.
    name: String,
    /// What it may do.
    #[arg(long, value_enum, default_value_t = Role::Admin)]
    role: Role,
    #[command(flatten)]
    at: Where,
}

/// What an API token may do.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Read.
    Viewer,
    /// Read, acknowledge and silence.
    Operator,
    /// Everything.
    Admin,
}

/// Lists enrolment tokens and API tokens, without their secrets.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
}

/// Ends a token now, one for enrolment by its id or one for the API by its name.
///
/// Agents that an enrolment token enrolled stay. A token for the API is refused from its next request on, and its name is
/// free again.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// As in the list: an id of an enrolment token, or the name of a token for the API.
    id: String,
    #[command(flatten)]
    at: Where,
}

impl Token {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self {
            Self::Create(it) => it.run(),
            Self::CreateApi(it) => it.run(),
            Self::List(it) => it.run(),
            Self::Revoke(it) => it.run(),
        }
    }
}

impl Create {
    fn run(self) -> Result<(), CliError> {
        let mut labels = Labels::default();
        for given in &self.labels {
            let (name, value) = given.split_once('=').unwrap_or((given, ""));
            labels.insert(name, value).map_err(|source| CliError::Label { given: given.clone(), source })?;
        }
        let directory = self.at.directory();
        let config = read_config(&directory.config())?;
        let fingerprint = match config.certificates.people.server {
            // Agents enrol with the listener for people, and look for the authority in the chain that it shows.
            Some(files) => pki::fingerprint(&pki::read_chain(&files.authority)?[0]),
            None => Keyring::read(&directory.authority_key(), &directory.authority())?.signer(now()).fingerprint(),
        };
        let terms = Terms { ttl: self.ttl, uses: self.uses, labels, ephemeral: self.ephemeral };
        let (row, token) = token::enrolment(fingerprint, terms, now());
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        transaction.add_token(&row)?;
        transaction.commit()?;
        let token = token.reveal();
        let mut json = shown(&row, now());
        json["token"] = token.clone().into();
        // Standard output has the token and nothing else, so that it can be written to a file.
        self.at.print(&json, || token)?;
        if !self.at.json {
            say(&format!("{}: {} use(s), until {}; shown only now\n", row.id, row.uses, time(row.expires_at)));
        }
        Ok(())
    }
}

impl CreateApi {
    fn run(self) -> Result<(), CliError> {
        let role = self.role.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        let (row, token) = token::api(&self.name, &role, now());
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        if !transaction.add_api_token(&row)? {
            return Err(CliError::Taken(self.name));
        }
        transaction.commit()?;
        let json = json!({ "name": row.name, "role": row.role, "created_at": row.created_at, "token": token });
        self.at.print(&json, || token)
    }
}

impl List {
    fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        let (tokens, api_tokens, now) = (writer.rows().tokens()?, writer.rows().api_tokens()?, now());
        let of_api = |it: &crate::store::ApiTokenRow| json!({ "kind": "api", "tenant": it.tenant, "name": it.name, "role": it.role, "created_at": it.created_at });
        let json = json!({
            "enrolment": tokens.iter().map(|it| shown(it, now)).collect::<Vec<_>>(),
            "api": api_tokens.iter().map(of_api).collect::<Vec<_>>(),
        });
        self.at.print(&json, || {
            let rows: Vec<_> = tokens
                .iter()
                .map(|it| {
                    let used = format!("{} of {}", it.used, it.uses);
                    [
                        it.id.clone(),
                        state(it, now).into(),
                        used,
                        time(it.created_at),
                        time(it.expires_at),
                        labels(&it.labels),
                    ]
                })
                .collect();
            let api: Vec<_> =
                api_tokens.iter().map(|it| [it.name.clone(), it.role.clone(), time(it.created_at)]).collect();
            format!(
                "{}\n\n{}",
                table(["ENROLMENT", "STATE", "USED", "CREATED", "EXPIRES", "LABELS"], &rows),
                table(["API", "ROLE", "CREATED"], &api)
            )
        })
    }
}

impl Revoke {
    fn run(self) -> Result<(), CliError> {
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        let kind = if transaction.revoke_token(DEFAULT_TENANT, &self.id, now())? {
            "enrolment"
        } else if transaction.revoke_api_token(DEFAULT_TENANT, &self.id)? {
            "api"
        } else {
            return Err(CliError::Unknown { kind: "token", id: self.id });
        };
        transaction.commit()?;
        let json = json!({ "id": self.id, "kind": kind, "revoked": true });
        self.at.print(&json, || format!("{} is revoked", self.id))
    }
}

fn state(token: &TokenRow, now: Timestamp) -> &'static str {
    if token.revoked_at.is_some() {
        "revoked"
    } else if token.used >= token.uses {
        "used up"
    } else if token.expires_at <= now {
        "expired"
    } else {
        "usable"
    }
}

fn shown(token: &TokenRow, now: Timestamp) -> Value {
    json!({
        "kind": "enrolment",
        "tenant": token.tenant,
        "id": token.id,
        "state": state(token, now),
        "labels": token.labels,
        "ephemeral": token.ephemeral,
        "uses": token.uses,
        "used": token.used,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    })
}
