//! What a run of the fuzz targets came to, as a table.

use std::fmt;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use tickbird_tests::StageError;

const HEAD: &str = "| target | minutes | executions | a second | edges | slowest input | most memory | kept inputs | found |\n\
                    | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";

/// One target's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    minutes: u64,
    executions: u64,
    rate: u64,
    edges: u64,
    slowest_seconds: u64,
    memory: u64,
    kept: usize,
    pub(super) findings: Vec<String>,
}

impl Row {
    /// From what libFuzzer printed.
    pub(super) fn read(name: &str, log: &str, minutes: u64, kept: usize, findings: Vec<String>) -> Self {
        let statistic = |key: &str| {
            let line = log.lines().rev().find_map(|it| it.strip_prefix("stat::")?.strip_prefix(key));
            line.and_then(|it| it.trim_start_matches(':').trim().parse().ok()).unwrap_or(0)
        };
        let edges = log.lines().rev().find_map(|it| it.split_once(" cov: ")?.1.split(' ').next()?.parse().ok());
        Self {
            name: name.to_owned(),
            minutes,
            executions: statistic("number_of_executed_units"),
            rate: statistic("average_exec_per_sec"),
            edges: edges.unwrap_or(0),
            slowest_seconds: statistic("slowest_unit_time_sec"),
            memory: statistic("peak_rss_mb"),
            kept,
            findings,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slowest =
            if self.slowest_seconds == 0 { "< 1 s".to_owned() } else { format!("{} s", self.slowest_seconds) };
        let found = if self.findings.is_empty() { "nothing".to_owned() } else { self.findings.join(", ") };
        write!(
            f,
            "| `{}` | {} | {} | {} | {} | {slowest} | {} MiB | {} | {found} |",
            self.name, self.minutes, self.executions, self.rate, self.edges, self.memory, self.kept
        )
    }
}

/// The rows under their head.
pub(super) fn table(rows: &[Row]) -> String {
    let lines: Vec<_> = rows.iter().map(|it| format!("{it}\n")).collect();
    format!("{HEAD}{}", lines.concat())
}

/// Writes the rows into the summary; those of other targets stay.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(path: &Path, rows: &[Row], minutes: u64) -> Result<(), StageError> {
    let old = fs::read_to_string(path).unwrap_or_default();
    let text = merged(&old, rows, minutes, Timestamp::now());
    fs::write(path, text).map_err(StageError::system(format!("write {}", path.display())))
}

fn merged(old: &str, rows: &[Row], minutes: u64, now: Timestamp) -> String {
    let is_of = |line: &str, row: &Row| line.starts_with(&format!("| `{}` |", row.name));
    let others = old.lines().filter(|line| line.starts_with("| `") && !rows.iter().any(|row| is_of(line, row)));
    let mut lines: Vec<String> = others.map(str::to_owned).chain(rows.iter().map(ToString::to_string)).collect();
    lines.sort();
    let day = now.strftime("%Y-%m-%d");
    format!(
        "# Fuzzing: every parser of foreign bytes\n\n\
         `cargo xtask fuzz`, last on {day} with {minutes} minutes for each target that ran. An input has at most 16 KiB, 5 s \
         and 24 MiB and\n256 times its own size of memory; the whole process 512 MiB. Arithmetic is checked for overflow. \
         `edges` is what was reached of the\nprogram and of every crate in it.\n\n{HEAD}{}\n",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "#4\tINITED cov: 100 ft: 101 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                       #90000\tDONE   cov: 2345 ft: 4000 corp: 200/10Kb lim: 4 exec/s: 900 rss: 60Mb\n\
                       stat::number_of_executed_units: 90000\nstat::average_exec_per_sec:     900\n\
                       stat::slowest_unit_time_sec:    0\nstat::peak_rss_mb:              61\n";

    #[test]
    fn a_run_is_read_and_takes_the_place_of_the_one_before() {
        let row = Row::read("redis", LOG, 10, 42, Vec::new());
        assert_eq!(row.to_string(), "| `redis` | 10 | 90000 | 900 | 2345 | < 1 s | 61 MiB | 42 | nothing |");
        let other = Row { name: "dsn".to_owned(), ..row.clone() };
        let first = merged("", &[row.clone(), other], 10, Timestamp::UNIX_EPOCH);
        let again = Row { findings: vec!["crash-1".to_owned()], ..row };
        let second = merged(&first, &[again], 10, Timestamp::UNIX_EPOCH);
        let rows: Vec<_> = second.lines().filter(|it| it.starts_with("| `")).collect();
        assert!(rows.len() == 2 && rows[0].starts_with("| `dsn`") && rows[1].ends_with("| crash-1 |"), "{second}");
    }
}
