//! `tickbird-agent inspect` and `status`: the same report, taken now or asked of the running agent.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::{Failure, Show};
use crate::agent::{Once, wall};
use crate::config::Config;
use crate::status::render::{self, Style};
use crate::status::{Report, socket};

pub(super) async fn status(config: &Config, show: Show) -> Result<u8, Failure> {
    let path = config.state_dir.join(socket::NAME);
    let report = socket::ask(&path).await.map_err(|error| Failure::of(&error, Some(error.advice())))?;
    print(&report, show);
    Ok(report.exit_code())
}

pub(super) async fn inspect(config: Config, show: Show, watch: bool) -> Result<u8, Failure> {
    let mut once = Once::new(config);
    once.look().await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        once.look().await;
        let report = once.report();
        if watch && !show.json.json && std::io::stdout().is_terminal() {
            // Home and clear: the next report stands where this one stood.
            print!("\x1b[H\x1b[2J");
        }
        print(&report, show);
        if !watch {
            return Ok(report.exit_code());
        }
        let _ = std::io::stdout().flush();
    }
}

fn print(report: &Report, Show { json, checks, sessions, why }: Show) {
    if json.json {
        match serde_json::to_string(report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("tickbird-agent: the report of {} cannot be shown: {error}", wall()),
        }
    } else {
        print!("{}", render::report(report, &Style { checks, sessions, why, ..Style::of_terminal() }));
    }
}
