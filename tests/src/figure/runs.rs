//! Runs that are kept: `tests/bench/runs/<date>-<scenario>`, with every value and a table. A second one of a day has `.2` behind the date.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Figure, machine, median, table};
use crate::stage::{Stage, StageError};

/// A kept run may be worsened by so much: the machines that we have are shared.
const WORSE: f64 = 0.15;
const RAW: &str = "raw.csv";
const SUMMARY: &str = "README.md";

/// What the last kept run of a scenario on this kind of machine measured.
#[derive(Debug, Default)]
pub struct Before {
    /// Name of its directory.
    pub name: Option<String>,
    /// Each figure's values.
    figures: Vec<(String, Vec<f64>)>,
}

impl Before {
    /// The median of that figure, if it was measured.
    pub fn median_of(&self, figure: &Figure) -> Option<f64> {
        self.figures.iter().find(|it| it.0 == figure.what).map(|it| median(&it.1))
    }

    /// Whether a figure is worse by more than 15 %.
    pub fn is_worsened(&self, figure: &Figure) -> bool {
        self.median_of(figure).is_some_and(|before| figure.is_worse_than(before, WORSE))
    }
}

/// The newest of `scenario` in `runs` that was taken on a machine like this.
pub fn last(runs: &Path, scenario: &str) -> Before {
    let Ok(entries) = std::fs::read_dir(runs) else { return Before::default() };
    let mut names: Vec<String> = entries.flatten().filter_map(|it| it.file_name().into_string().ok()).collect();
    names.retain(|name| parts(name).is_some_and(|it| it.2 == scenario));
    names.sort_by(|a, b| parts(a).cmp(&parts(b)));
    let is_alike = |name: &String| {
        let summary = std::fs::read_to_string(runs.join(name).join(SUMMARY)).unwrap_or_default();
        summary.lines().any(|line| line == format!("- {}", machine::kind()))
    };
    let Some(name) = names.into_iter().rev().find(is_alike) else { return Before::default() };
    let raw = std::fs::read_to_string(runs.join(&name).join(RAW)).unwrap_or_default();
    let mut figures: Vec<(String, Vec<f64>)> = Vec::new();
    for row in raw.lines().skip(1) {
        // The name of a figure may hold commas; unit, number and value do not.
        let mut cells = row.rsplitn(4, ',');
        let (Some(value), Some(_), Some(_), Some(what)) = (cells.next(), cells.next(), cells.next(), cells.next())
        else {
            continue;
        };
        let Ok(value) = value.parse() else { continue };
        match figures.iter_mut().find(|it| it.0 == what) {
            Some(known) => known.1.push(value),
            None => figures.push((what.to_owned(), vec![value])),
        }
    }
    Before { name: Some(name), figures }
}

/// Date, number within the day, and scenario of a directory's name: `2026-11-23.2-tick`.
fn parts(name: &str) -> Option<(&str, u32, &str)> {
    let (date, rest) = name.split_at_checked(10)?;
    if let Some(scenario) = rest.strip_prefix('-') {
        return Some((date, 1, scenario));
    }
    let (number, scenario) = rest.strip_prefix('.')?.split_once('-')?;
    Some((date, number.parse().ok()?, scenario))
}

/// Where it ran, and what was measured.
pub fn summary(scenario: &str, about: &str, conditions: &[String], figures: &[Figure], before: &Before) -> String {
    let mut text = format!("# {scenario}: {about}\n\n");
    for it in conditions {
        let _ = writeln!(text, "- {it}");
    }
    if let Some(name) = &before.name {
        let _ = writeln!(text, "- last kept: {name}");
    }
    let _ = write!(text, "\n{}", table(figures, |figure| before.median_of(figure)));
    text
}

/// What the figures of a run were taken on. To be called before and after: the load is told of both.
pub fn conditions(stage: &Stage) -> Result<Vec<String>, StageError> {
    let agent = stage.binary("tickbird-agent")?;
    let mut all = vec![machine::kind()];
    all.extend(machine::about());
    all.push(format!("{} of {}", machine::version(&agent, "--version"), machine::commit()));
    all.push(format!("beside {}", machine::versions().join(", ")));
    all.push(format!("begun {}", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC")));
    Ok(all)
}

/// Writes a run to `directory`, and answers its path.
pub fn keep(directory: &Path, scenario: &str, summary: &str, figures: &[Figure]) -> Result<PathBuf, StageError> {
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
    let name = |number: u32| if number == 1 { date.to_string() } else { format!("{date}.{number}") };
    let mut paths = (1..).map(|number| directory.join(format!("{}-{scenario}", name(number))));
    let path = paths.find(|it| !it.exists()).expect("numbers do not end");
    let mut raw = String::from("figure,unit,number,value\n");
    for figure in figures {
        for (number, value) in figure.values.iter().enumerate() {
            let _ = writeln!(raw, "{},{},{number},{value}", figure.what, figure.unit);
        }
    }
    let failed = || StageError::system(format!("write {}", path.display()));
    std::fs::create_dir_all(&path).map_err(failed())?;
    std::fs::write(path.join(RAW), raw).map_err(failed())?;
    std::fs::write(path.join(SUMMARY), summary).map_err(failed())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(runs: &Path, scenario: &str, values: &[f64], kind: &str) -> PathBuf {
        let figures = [Figure::of_all("90 %, of all", values.to_vec(), "ms"), Figure::of("rate", 7.0, "1/s")];
        let text = summary(scenario, "something", &[kind.to_owned()], &figures, &Before::default());
        keep(runs, scenario, &text, &figures).unwrap()
    }

    #[test]
    fn the_last_run_of_the_same_scenario_on_such_a_machine_is_compared() {
        let runs = tempfile::tempdir().unwrap();
        assert_eq!(last(runs.path(), "tick").name, None);
        kept(runs.path(), "tick", &[10.0, 30.0, 20.0], &machine::kind());
        kept(runs.path(), "tick-tock", &[1.0], &machine::kind());
        let before = last(runs.path(), "tick");
        let figure = |value| Figure::of("90 %, of all", value, "ms");
        assert_eq!(before.median_of(&figure(0.0)), Some(20.0));
        assert!(before.is_worsened(&figure(23.1)) && !before.is_worsened(&figure(22.9)));
        assert!(!before.is_worsened(&Figure::of("new", 1e9, "ms")), "what was not measured is not worse");
        // Later that day, on something else; and on this again, ten times.
        kept(runs.path(), "tick", &[1.0], "1 × abacus, 0 GiB");
        assert_eq!(last(runs.path(), "tick").median_of(&figure(0.0)), Some(20.0));
        for value in 1..=10 {
            kept(runs.path(), "tick", &[f64::from(value)], &machine::kind());
        }
        let before = last(runs.path(), "tick");
        assert_eq!(before.median_of(&figure(0.0)), Some(10.0));
        assert!(before.name.is_some_and(|it| it.ends_with(".12-tick")));
    }

    #[test]
    fn of_several_days_the_newest_counts() {
        let runs = tempfile::tempdir().unwrap();
        for (date, value) in [("2026-01-09", 1.0), ("2026-02-01", 2.0), ("2025-12-31", 3.0)] {
            let written = kept(runs.path(), "look", &[value], &machine::kind());
            std::fs::rename(written, runs.path().join(format!("{date}-look"))).unwrap();
        }
        assert_eq!(last(runs.path(), "look").name.as_deref(), Some("2026-02-01-look"));
    }
}
