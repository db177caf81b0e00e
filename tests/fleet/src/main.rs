//! `tickbird-fleet`: arguments, phases, one table.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tickbird_fleet::identities::{self, Identity};
use tickbird_fleet::{Conduct, Faults, Fleet, Report, raise_descriptors, sources_for};
use tickbird_shared::enrolment::EnrolmentToken;

/// How long agents may take to connect, each time.
const CONNECT: Duration = Duration::from_secs(300);
const PART: Duration = Duration::from_secs(60);
/// Longest token file that is read.
const MAX_TOKEN_BYTES: u64 = 4096;

const MORE: &str = "\
Examples:
  A thousand agents for a minute, against a collector of this host:
    tickbird-collector token create --dir /var/lib/tickbird-collector --uses 1000 > token
    tickbird-fleet 1000 --collector https://127.0.0.1:7444 --token-file token --identities fleet.jsonl
  Fifteen thousand that all drop and come back every minute; those in fleet.jsonl are not enrolled again:
    tickbird-fleet 15000 --collector https://127.0.0.1:7444 --token-file token --identities fleet.jsonl \\
        --seconds 600 --storm 60
  Whatever can go wrong with a batch:
    tickbird-fleet 200 --identities fleet.jsonl --every 1 --repeat 10 --reorder 10 --cut 10 --half-open 10 --skewed 5

What a run needs:
  Each agent takes a descriptor here and one at the collector (`ulimit -n`), and a port of its source address. From
  127.0.0.0/8 agents come from an address for each hundred of them, so that the collector's bounds for one source
  (`limits.handshakes_per_second`) mean what they do for sites. From elsewhere they share this host's address.
  An agent may send `limits.records_per_second` (200) and is refused beyond it, which is counted under `limited`.

Exit codes:
  0  every batch was acknowledged and no promise of the collector broken
  1  something was given up, some promise broken, or nothing could be begun; it is said which
  2  wrong usage";

/// Speaks to a collector as many agents do, each with a certificate and a connection of its own.
///
/// The agents are enrolled with a token and kept in a file; then all of them connect at once, send batches at their pace,
/// say goodbye, and one table tells what came of it. Connections, batches and answers are the agent's own code; records are
/// invented. Times are those of the agents: from the first byte of a batch to its acknowledgement, the wait for the disk and
/// attempts that failed included.
#[derive(Debug, Parser)]
#[command(name = "tickbird-fleet", version, max_term_width = 100, after_help = MORE)]
struct Arguments {
    /// How many agents.
    #[arg(default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    agents: u32,
    /// The collector's listener for people, where agents enrol; needed when FILE does not hold enough identities.
    #[arg(long, value_name = "URL", requires = "token_file")]
    collector: Option<String>,
    /// File that holds an enrolment token with as many uses as agents are missing; `-` reads it from standard input.
    #[arg(long, value_name = "FILE|-", requires = "collector")]
    token_file: Option<PathBuf>,
    /// Where the agents' identities are kept, private keys included. They are good for one collector.
    #[arg(long, value_name = "FILE", default_value = "fleet.jsonl")]
    identities: PathBuf,
    /// Between two batches of an agent.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = positive)]
    every: f64,
    /// Records of a batch, about 250 bytes each.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    records: u32,
    /// Of a hundred batches, those of findings; the others hold summaries.
    #[arg(long, value_name = "PERCENT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    findings: u32,
    /// How long batches are sent.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = positive)]
    seconds: f64,
    /// All connections drop, and all agents come back, so often.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    storm: Option<f64>,
    /// Addresses of loopback that the agents come from.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    sources: Option<u32>,
    /// Batches that are sent twice; the second answer has to be as the first.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    repeat: f64,
    /// Batches whose successor is sent before them; it has to be refused as a gap.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    reorder: f64,
    /// Batches that break off in the middle of their body once, on a second connection.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    cut: f64,
    /// Agents that leave a second connection open on which they never say a word.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    half_open: f64,
    /// Agents whose clock is behind by what --skew says.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    skewed: f64,
    /// How far behind it is.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600.0, value_parser = positive)]
    skew: f64,
    /// Leave without a goodbye: the collector misses them all thirty seconds later.
    #[arg(long)]
    vanish: bool,
    /// Of what is random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Threads that speak for all agents.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("a TLS provider was already installed");
        return ExitCode::FAILURE;
    }
    let descriptors = raise_descriptors();
    if descriptors < u64::from(arguments.agents) + 100 {
        eprintln!(
            "{} agents need as many descriptors, and this process may have {descriptors}\n  advice: raise `ulimit -Hn`",
            arguments.agents
        );
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads.into())
        .thread_name("fleet")
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(&arguments)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool, String> {
    let identities = identities(arguments).await?;
    let url = identities.first().map(|it| it.url.clone()).unwrap_or_default();
    let mut fleet = Fleet::new(&identities, conduct(arguments, &url)).map_err(|error| error.to_string())?;
    drop(identities);

    let began = Instant::now();
    fleet.greet(CONNECT).await;
    let first = fleet.take_report();
    let (connected, took) = (first.connected, began.elapsed().as_secs_f64());
    eprintln!("{connected} of {} agents connected within {took:.1} s", fleet.len());
    let mut reports = vec![first];

    let time = Duration::from_secs_f64(arguments.seconds);
    let stretch = arguments.storm.map_or(time, Duration::from_secs_f64).min(time);
    let sending = Instant::now();
    loop {
        fleet.keep_sending(stretch.min(time.saturating_sub(sending.elapsed()))).await;
        reports.push(fleet.take_report());
        if sending.elapsed() >= time {
            break;
        }
        let dropped = Instant::now();
        fleet.drop_all();
        fleet.greet(CONNECT).await;
        let back = fleet.take_report();
        eprintln!("{} agents back within {:.1} s of a storm", back.connected, dropped.elapsed().as_secs_f64());
        reports.push(back);
    }
    if !arguments.vanish {
        fleet.part(PART).await;
        reports.push(fleet.take_report());
    }
    let seconds = began.elapsed().as_secs_f64();
    let report = Report::of_all(reports);
    if arguments.json {
        println!("{}", report.to_json(seconds));
    } else {
        print!("{}", report.table(seconds));
    }
    Ok(report.is_well())
}

fn conduct(arguments: &Arguments, url: &str) -> Conduct {
    let share = |percent: f64| percent / 100.0;
    Conduct {
        every: Duration::from_secs_f64(arguments.every),
        records: arguments.records as usize,
        findings: arguments.findings,
        sources: arguments.sources.map(|it| it as usize).or_else(|| sources_for(arguments.agents as usize, url)),
        faults: Faults {
            repeated: share(arguments.repeat),
            reordered: share(arguments.reorder),
            cut: share(arguments.cut),
            half_open: share(arguments.half_open),
            skewed: share(arguments.skewed),
            skew: Duration::from_secs_f64(arguments.skew),
        },
        seed: arguments.seed,
    }
}

/// Those that are kept, and as many new ones as are missing.
async fn identities(arguments: &Arguments) -> Result<Vec<Identity>, String> {
    let wanted = arguments.agents as usize;
    let mut all = identities::read(&arguments.identities).map_err(|error| error.to_string())?;
    all.truncate(wanted);
    let missing = wanted - all.len();
    if missing == 0 {
        return Ok(all);
    }
    let (Some(collector), Some(file)) = (&arguments.collector, &arguments.token_file) else {
        let path = arguments.identities.display();
        return Err(format!(
            "`{path}` holds {} of {wanted} identities\n  advice: give --collector and --token-file to enrol the others",
            all.len()
        ));
    };
    let token = read_token(file)?;
    let began = Instant::now();
    let enrolled = identities::enrol(&token, collector, missing)
        .await
        .map_err(|error| format!("{error}\n  advice: {}", advice(&error)))?;
    eprintln!("{missing} agents enrolled in {:.1} s", began.elapsed().as_secs_f64());
    identities::keep(&arguments.identities, &enrolled).map_err(|error| error.to_string())?;
    all.extend(enrolled);
    Ok(all)
}

fn advice(error: &identities::IdentityError) -> &'static str {
    match error {
        identities::IdentityError::Enrol { source, .. } => source.advice(),
        _ => None,
    }
    .unwrap_or("see the collector's log")
}

fn read_token(path: &Path) -> Result<EnrolmentToken, String> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| format!("cannot read the enrolment token from `{}`: {error}", path.display()))?;
    text.parse().map_err(|error| format!("`{}`: {error}", path.display()))
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    if number > 0.0 && number <= 1e6 { Ok(number) } else { Err("is not above 0 and at most a million".to_owned()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    if (0.0..=100.0).contains(&number) { Ok(number) } else { Err("is not between 0 and 100".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_example_of_the_help_is_understood() {
        Arguments::command().debug_assert();
        let whole = MORE.replace("\\\n", " ");
        let examples: Vec<&str> = whole.lines().map(str::trim).filter(|it| it.starts_with("tickbird-fleet")).collect();
        assert_eq!(examples.len(), 3);
        for example in examples {
            Arguments::try_parse_from(example.split_ascii_whitespace()).expect(example);
        }
    }

    #[test]
    fn shares_are_between_none_and_all() {
        assert!(percent("100").is_ok() && percent("101").is_err() && percent("x").is_err());
        assert!(positive("0").is_err() && positive("inf").is_err() && positive("0.1").is_ok());
    }
}
