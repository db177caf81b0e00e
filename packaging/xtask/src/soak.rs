//! `cargo xtask soak`: healthy traffic over stacks of four languages for a long time, without one finding; then the long
//! forms of the tests that cut, kill, damage and crowd.

use std::time::Instant;

use tickbird_tests::StageError;
use tickbird_tests::stage::workspace;

use crate::packages;
use crate::steps::{Steps, TaskError, build_release, cargo, remove};

/// One long form of tests.
struct Long {
    name: &'static str,
    /// What cargo runs.
    arguments: &'static [&'static str],
    /// Which of the tests.
    tests: &'static [&'static str],
    /// How it is asked for, where it is.
    variable: Option<(&'static str, &'static str)>,
    /// How often they run.
    times: usize,
}

const END_TO_END: &[&str] = &["-p", "tickbird-tests", "--test", "it"];
/// Those of both programs try more places than a scenario could.
const UNIT: &[&str] = &["-p", "tickbird-agent", "-p", "tickbird-collector", "--lib"];

const LONG: [Long; 6] = [
    Long::of("kills", &["kills::"], ("TICKBIRD_KILL_CYCLES", "1000")),
    Long::of("cuts of the network", &["partitions::", "resets::"], ("TICKBIRD_CUT_SECONDS", "180")),
    Long::of("short lived certificates", &["short_lives::"], ("TICKBIRD_CERTIFICATE_MINUTES", "30")),
    Long::of("many agents", &["limits::eleven_"], ("TICKBIRD_LIMITS_AGENTS", "2000")),
    Long {
        arguments: UNIT,
        ..Long::of("damaged places", &["damage::", "repair::"], ("TICKBIRD_DAMAGE_PLACES", "2000"))
    },
    Long {
        name: "full disks, clocks that are set, damage",
        arguments: END_TO_END,
        tests: &["full_disk::", "clocks::", "damage::"],
        variable: None,
        times: 5,
    },
];

impl Long {
    const fn of(name: &'static str, tests: &'static [&'static str], variable: (&'static str, &'static str)) -> Self {
        Self { name, arguments: END_TO_END, tests, variable: Some(variable), times: 1 }
    }

    fn run(&self, environment: &[(&str, &str)]) -> Result<(), TaskError> {
        let command = [&["test", "--locked"], self.arguments, &["--"], self.tests, &["--test-threads=1"]].concat();
        let environment = [environment, self.variable.as_slice()].concat();
        (0..self.times).try_for_each(|_| cargo(&command, &environment))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Minutes of traffic; none leaves the traffic out.
    #[arg(default_value_t = 60, value_name = "MINUTES")]
    minutes: u64,
    /// Only the long forms whose name contains this; `-` leaves them out.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
}

pub(crate) fn soak(arguments: &Arguments) -> Result<(), TaskError> {
    packages::install_all()?;
    let binaries = build_release()?;
    let runs = workspace().join("tests/bench/runs");
    let binaries = binaries.to_string_lossy();
    let mut steps = Steps::default();
    if arguments.minutes > 0 {
        let summary = runs.join("soak.md");
        println!("{} minutes of traffic; the summary will stand in {}", arguments.minutes, summary.display());
        let environment = [
            ("TICKBIRD_BIN_DIR", &*binaries),
            ("TICKBIRD_SOAK_MINUTES", &arguments.minutes.to_string()),
            ("TICKBIRD_SOAK_SUMMARY", &summary.to_string_lossy()),
        ];
        steps.run("traffic", || cargo(&["test", "--locked", "-p", "tickbird-tests", "--test", "soak"], &environment));
    }
    let long: Vec<_> = LONG.iter().filter(|it| it.name.contains(&arguments.only)).collect();
    let told = runs.join("long-forms.txt");
    let mut summary = String::from(
        "# Long forms of the tests\n\nEach line that a test tells of itself, on release binaries, one after another.\n",
    );
    for form in &long {
        remove(&told)?;
        let began = Instant::now();
        let environment = [("TICKBIRD_BIN_DIR", &*binaries), ("TICKBIRD_REPORT", &*told.to_string_lossy())];
        let mut passed = false;
        steps.run(form.name, || form.run(&environment).inspect(|()| passed = true));
        let outcome = if passed { "passed" } else { "FAILED" };
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let how = form.variable.map(|(key, value)| format!("`{key}={value}`, ")).unwrap_or_default();
        let times = if form.times > 1 { format!("{} times, ", form.times) } else { String::new() };
        summary += &format!("\n## {}: {outcome}\n\n{how}{times}{minutes:.1} minutes.\n", form.name);
        let lines = std::fs::read_to_string(&told).unwrap_or_default();
        for line in lines.lines() {
            summary += &format!("- {line}\n");
        }
    }
    remove(&told)?;
    if long.len() == LONG.len() {
        let path = runs.join("long-forms.md");
        std::fs::write(&path, summary).map_err(StageError::system("write the summary of the long forms"))?;
        println!("the long forms' summary stands in {}", path.display());
    }
    steps.finish()
}
