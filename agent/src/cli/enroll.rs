//! `tickbird-agent enroll`: a token in, an identity out.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use tickbird_shared::enrolment::EnrolmentToken;

use super::Failure;
use crate::agent::{host_name, wall};
use crate::config::{Config, Place};
use crate::ship::enrolment::Enrolment;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// File that holds the enrolment token; `-` reads it from standard input.
    #[arg(long, value_name = "FILE|-")]
    token_file: PathBuf,
    /// Address of the collector's listener for people: https://host:7444.
    #[arg(long, value_name = "URL")]
    collector: String,
    /// Replace the identity that this state directory already has.
    #[arg(long)]
    force: bool,
}

/// Longest token file that is read.
const MAX_TOKEN_BYTES: u64 = 4096;

pub(super) async fn enroll(place: &Place, options: Options) -> Result<u8, Failure> {
    let config = Config::load(place)?;
    if let Some(it) = crate::config::files::readable_by_others(&options.token_file) {
        super::say(&format!("warning: {}\n  advice: {}", it.what, it.advice));
    }
    let token = read_token(&options.token_file)?;
    let host = host_name();
    let enrolment = Enrolment {
        token: &token,
        collector: &options.collector,
        host: &host,
        state_dir: &config.state_dir,
        replace: options.force,
    };
    let identity = enrolment.run(wall()).await.map_err(|error| Failure::of(&error, error.advice()))?;
    let card = identity.card();
    let (agent, tenant, until, url) = (&card.agent, &card.tenant, card.expires_at, &card.url);
    super::put(
        0,
        format_args!("enrolled as {agent} (tenant {tenant}), certificate until {until}\nrecords go to {url}\n"),
    )
}

fn read_token(path: &std::path::Path) -> Result<EnrolmentToken, Failure> {
    let shown = path.display();
    let opened: std::io::Result<Box<dyn Read>> = if path.as_os_str() == "-" {
        Ok(Box::new(std::io::stdin()))
    } else {
        std::fs::File::open(path).map(|it| Box::new(it) as _)
    };
    let mut text = zeroize::Zeroizing::new(String::new());
    opened
        .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
        .map_err(|error| Failure(format!("cannot read the enrolment token from `{shown}`: {error}")))?;
    text.parse().map_err(|error| {
        Failure(format!("`{shown}`: {error}\n  advice: make one with `tickbird-collector token create`"))
    })
}
