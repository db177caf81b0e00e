//! `ack …`: an incident is somebody's for a while, and nobody else hears of it meanwhile.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tickbird_shared::Timestamp;
use tickbird_shared::units::parse_duration;
use ulid::Ulid;

use super::silence::{later, logged_in, moment};
use super::table::{plain, table, time};
use super::{CliError, Where, now};
use crate::alert::{AcknowledgementDocument, AcknowledgementError, Ask};
use crate::store::AcknowledgementRow;
use crate::token::DEFAULT_TENANT;

/// Acknowledges an incident that fires: somebody has it, and nobody is told of it again meanwhile.
///
/// Repeats, updates and steps of an escalation are held back. What gets worse than it was is told, and ends the acknowledgement; that it is over is told as
/// ever. When the time has passed and it still fires, whoever was told of it is told again. A serving collector takes it over within
/// a second. Without --for and --until it lasts for 8 hours.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Acknowledge {
    #[command(subcommand)]
    other: Option<Other>,
    /// Its id, as in messages and in the API.
    #[arg(required = true)]
    incident: Option<String>,
    /// For how long.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, conflicts_with = "until")]
    length: Option<Duration>,
    /// Until when, as in 2026-12-01T08:00:00+01:00.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Whose it is; by default whoever is logged in.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// What is being done; whoever asks why they were not told reads it.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Subcommand)]
enum Other {
    List(List),
    End(End),
}

/// Lists the incidents that somebody has.
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    at: Where,
}

/// Ends the acknowledgement of an incident now: whoever was told of it is told again.
#[derive(Debug, Args)]
struct End {
    /// Its id, as in the list.
    incident: String,
    /// Who ends it; by default whoever is logged in.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    at: Where,
}

impl Acknowledge {
    pub(super) fn run(self) -> Result<(), CliError> {
        match (self.other, &self.incident) {
            (Some(Other::List(it)), _) => it.run(),
            (Some(Other::End(it)), _) => it.run(),
            (None, Some(incident)) => {
                let incident = incident.clone();
                Self { other: None, ..self }.begin(incident)
            }
            // The command line asks for one.
            (None, None) => Err(AcknowledgementError::Unknown.into()),
        }
    }

    fn begin(self, incident: String) -> Result<(), CliError> {
        let now = now();
        let ask = Ask {
            id: Ulid::new(),
            tenant: DEFAULT_TENANT.into(),
            incident,
            owner: self.by.or_else(logged_in).ok_or(CliError::Nobody)?,
            note: self.note,
            ends_at: self.until.unwrap_or_else(|| later(now, self.length.unwrap_or(Ask::LENGTH))),
        };
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        let incident = transaction.rows().incident(&ask.tenant, &ask.incident)?;
        let row = ask.of(incident.as_ref(), now)?;
        transaction.acknowledge(&row)?;
        transaction.commit()?;
        self.at.print(&json!(AcknowledgementDocument::from(&row)), || {
            format!("{} has {} until {}", plain(&row.owner), row.incident, time(row.ends_at))
        })
    }
}

impl List {
    fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        let now = now();
        let live = writer.rows().live_acknowledgements()?;
        let found: Vec<_> = live.into_iter().filter(|it| it.tenant == DEFAULT_TENANT && it.ends_at > now).collect();
        let document = |it: &AcknowledgementRow| json!({ "incident": it.incident, "acknowledged": AcknowledgementDocument::from(it) });
        let json = json!({ "acknowledgements": found.iter().map(document).collect::<Vec<_>>() });
        self.at.print(&json, || {
            let of = |it: &AcknowledgementRow| {
                let note = it.note.as_deref().map(plain).unwrap_or_default();
                [it.incident.clone(), plain(&it.owner), time(it.created_at), time(it.ends_at), note]
            };
            table(["INCIDENT", "BY", "SINCE", "UNTIL", "NOTE"], &found.iter().map(of).collect::<Vec<_>>())
        })
    }
}

impl End {
    fn run(self) -> Result<(), CliError> {
        let by = self.by.or_else(logged_in).ok_or(CliError::Nobody)?;
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        if !transaction.end_acknowledgement(DEFAULT_TENANT, &self.incident, &format!("{by} ended it"), now())? {
            let is_known = transaction.rows().incident(DEFAULT_TENANT, &self.incident)?.is_some();
            let why = if is_known { AcknowledgementError::NoneHolds } else { AcknowledgementError::Unknown };
            return Err(why.into());
        }
        transaction.commit()?;
        self.at.print(&json!({ "incident": self.incident, "ended": true }), || {
            format!("nobody has {} any more", self.incident)
        })
    }
}
