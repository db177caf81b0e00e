//! `tickbird-agent inspect` and `status`: the same report, taken now or asked of the running agent.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::{Failure, Show, put, screen, written};
use crate::agent::Once;
use crate::config::Config;
use crate::status::render::{self, Style};
use crate::status::{Report, socket};

pub(super) async fn status(config: &Config, show: Show) -> Result<u8, Failure> {
    let path = config.state_dir.join(socket::NAME);
    let report = socket::ask(&path).await.map_err(|error| Failure::of(&error, Some(error.advice())))?;
    put(report.exit_code(), text(&report, show)?)
}

pub(super) async fn inspect(config: Config, show: Show, watch: bool) -> Result<u8, Failure> {
    let separation = super::separate(&config)?;
    let mut once = Once::new(config, &separation.reader);
    once.look().await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        once.look().await;
        let report = once.report();
        let mut answer = text(&report, show)?;
        if watch && !show.json.json && std::io::stdout().is_terminal() {
            // What ran over the edges would leave only the end of the report on the screen.
            let shown = screen::size().map_or(answer.clone(), |size| screen::fit(&answer, size));
            // Home and clear: the next report stands where this one stood.
            answer = format!("\x1b[H\x1b[2J{shown}");
        }
        if !watch {
            return put(report.exit_code(), answer);
        }
        let mut out = std::io::stdout().lock();
        let outcome = out.write_all(answer.as_bytes()).and_then(|()| out.flush());
        if outcome.is_err() {
            return written(report.exit_code(), outcome);
        }
    }
}

fn text(report: &Report, Show { json, checks, sessions, why }: Show) -> Result<String, Failure> {
    if json.json {
        let text = serde_json::to_string(report);
        return text.map(|it| it + "\n").map_err(|error| Failure(format!("the report cannot be shown: {error}")));
    }
    Ok(render::report(report, &Style { checks, sessions, why, ..Style::of_terminal() }))
}
