//! `silence …`: for a while nobody hears of what matches, but that it is over.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tickbird_shared::units::parse_duration;
use tickbird_shared::{Status, Timestamp};
use ulid::Ulid;

use super::table::{plain, table, time};
use super::{CliError, Where, now};
use crate::alert::{Silence as Sound, SilenceDocument, facts};
use crate::store::{IncidentFilter, IncidentRow, Rows, SilenceRow, StoreError};
use crate::token::DEFAULT_TENANT;

/// Incidents that fire and are shown of those that would be silenced.
const SHOWN: usize = 20;
/// Read at once.
const PAGE: u32 = 1_000;

#[derive(Debug, Subcommand)]
pub(super) enum Silence {
    Add(Add),
    Preview(Preview),
    List(List),
    End(End),
}

/// Silences what matches, for a while.
///
/// Nobody is told of an incident that all matchers meet; whoever was told before that it fires still hears that it is over. When
/// the silence ends, whoever missed something that is still true hears of it within a second. A serving collector takes it over
/// within a second.
#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    of: Of,
    /// For how long, from its begin on.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = parse_duration, conflicts_with = "until")]
    length: Duration,
    /// Until when, as in 2026-12-01T08:00:00+01:00.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// From when on, if not from now on.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// Why; whoever asks why they were not told reads it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who asks for it; by default whoever is logged in.
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// Tells which incidents that fire now a silence would be about.
#[derive(Debug, Args)]
pub(super) struct Preview {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    at: Where,
}

/// What it is about.
#[derive(Debug, Args)]
struct Of {
    /// As in 'team="db"', 'check=~"pool\\..*"', 'env!="staging"'; all have to match.
    #[arg(value_name = "MATCHER", required = true)]
    matchers: Vec<String>,
}

/// Lists the silences that hold and those to come.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Those that have ended as well.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    at: Where,
}

/// Ends a silence now.
#[derive(Debug, Args)]
pub(super) struct End {
    /// As in the list.
    id: String,
    #[command(flatten)]
    at: Where,
}

pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "write it with its zone, like 2026-12-01T08:00:00Z".into())
}

impl Silence {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self {
            Self::Add(it) => it.run(),
            Self::Preview(it) => it.run(),
            Self::List(it) => it.run(),
            Self::End(it) => it.run(),
        }
    }
}

impl Of {
    /// A silence of these matchers.
    fn row(&self, author: String, reason: String, (starts_at, ends_at): (Timestamp, Timestamp)) -> SilenceRow {
        SilenceRow {
            tenant: DEFAULT_TENANT.into(),
            id: format!("sil_{}", Ulid::new()),
            matchers: self.matchers.clone(),
            author,
            reason,
            created_at: now(),
            starts_at,
            ends_at,
            over_at: None,
        }
    }
}

/// Who is logged in, also behind `sudo`.
pub(super) fn logged_in() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty()))
}

/// `by` after `from`, or the end of time.
pub(super) fn later(from: Timestamp, by: Duration) -> Timestamp {
    from.saturating_add(by).unwrap_or(Timestamp::MAX)
}

impl Add {
    fn run(self) -> Result<(), CliError> {
        let starts_at = self.from.unwrap_or_else(now);
        let ends_at = self.until.unwrap_or_else(|| later(starts_at, self.length));
        let author = self.author.or_else(logged_in).ok_or(CliError::Nobody)?;
        let row = self.of.row(author, self.reason, (starts_at, ends_at));
        // As it will be read again.
        let row = Sound::asked(row)?.row().clone();
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        if !transaction.add_silence(&row)? {
            return Err(CliError::TooManySilences);
        }
        transaction.commit()?;
        self.at.print(&json!(SilenceDocument::new(&row, now())), || {
            format!("{} holds until {}: {}", row.id, time(row.ends_at), plain(&row.matchers.join(", ")))
        })
    }
}

impl Preview {
    fn run(self) -> Result<(), CliError> {
        let silence = Sound::asked(self.of.row(String::new(), String::new(), (now(), Timestamp::MAX)))?;
        let writer = self.at.writer()?;
        let found = about(writer.rows(), &silence)?;
        let of = |it: &IncidentRow| json!({ "id": it.id, "check": it.check, "severity": it.severity, "target": it.target, "agent": it.agent, "summary": it.summary });
        self.at.print(&json!({ "incidents": found.iter().map(of).collect::<Vec<_>>() }), || {
            let of = |it: &IncidentRow| [it.severity.to_string(), it.check.clone(), plain(&it.summary)];
            let rows: Vec<_> = found.iter().take(SHOWN).map(of).collect();
            match (found.len(), rows.len()) {
                (0, _) => "it would be about nothing that fires now".into(),
                (all, few) if all > few => {
                    format!("{}\nand {} more", table(["SEVERITY", "CHECK", "SUMMARY"], &rows), all - few)
                }
                _ => table(["SEVERITY", "CHECK", "SUMMARY"], &rows),
            }
        })
    }
}

/// Incidents that fire and are what a silence is about.
fn about(rows: Rows<'_>, silence: &Sound) -> Result<Vec<IncidentRow>, StoreError> {
    let agents: std::collections::HashMap<_, _> =
        rows.all_agents()?.into_iter().map(|it| ((it.tenant.clone(), it.id.clone()), it)).collect();
    let mut filter = IncidentFilter {
        tenant: silence.row().tenant.clone(),
        status: Some(Status::Firing),
        limit: PAGE,
        ..IncidentFilter::default()
    };
    let mut found = Vec::new();
    loop {
        let page = rows.incidents(&filter)?;
        filter.before = page.last().map(|it| it.id.clone());
        let is_last = page.len() < PAGE as usize;
        found.extend(page.into_iter().filter(|it| {
            let agent = agents.get(&(it.tenant.clone(), it.agent.clone()));
            silence.matches(&facts(it, agent))
        }));
        if is_last {
            return Ok(found);
        }
    }
}

impl List {
    fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        let now = now();
        let found = writer.rows().silences(DEFAULT_TENANT, self.all, now, None, u32::MAX)?;
        let json = json!({ "silences": found.iter().map(|it| SilenceDocument::new(it, now)).collect::<Vec<_>>() });
        self.at.print(&json, || {
            let of = |it: &SilenceRow| {
                [
                    it.id.clone(),
                    it.state(now).into(),
                    time(it.starts_at),
                    time(it.ends_at),
                    plain(&it.author),
                    plain(&it.matchers.join(", ")),
                    plain(&it.reason),
                ]
            };
            let headings = ["SILENCE", "STATE", "FROM", "UNTIL", "BY", "MATCHERS", "REASON"];
            table(headings, &found.iter().map(of).collect::<Vec<_>>())
        })
    }
}

impl End {
    fn run(self) -> Result<(), CliError> {
        let mut writer = self.at.writer()?;
        let transaction = writer.transaction()?;
        if !transaction.end_silence(DEFAULT_TENANT, &self.id, now())? {
            return Err(CliError::Unknown { kind: "silence that holds or is to come", id: self.id });
        }
        transaction.commit()?;
        self.at.print(&json!({ "id": self.id, "ended": true }), || format!("{} has ended", self.id))
    }
}
