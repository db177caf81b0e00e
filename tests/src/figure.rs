//! One figure: what was measured, each value of it, and what it may be.

use std::fmt;

use serde_json::{Value, json};

pub mod machine;
pub mod runs;

/// What is measured once or several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is, in words; within one scenario its name.
    pub what: String,
    /// `ms`, `MiB`, `records/s`; empty for a ratio.
    pub unit: String,
    /// In the order they came; never empty.
    pub values: Vec<f64>,
    /// Which way is better.
    pub better: Better,
    /// The most that its median may be, or the least where more is better.
    pub budget: Option<f64>,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Time, memory.
    Less,
    /// Throughput.
    More,
    /// It is told beside others: a peer's, or how large the work was.
    Neither,
}

impl Figure {
    /// One value, of which less is better.
    pub fn of(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self::of_all(what, vec![value], unit)
    }

    /// Several values, of which less is better.
    pub fn of_all(what: impl Into<String>, values: Vec<f64>, unit: &str) -> Self {
        Self { what: what.into(), unit: unit.to_owned(), values, better: Better::Less, budget: None }
    }

    /// The median may not be more.
    #[must_use]
    pub fn at_most(self, budget: f64) -> Self {
        Self { budget: Some(budget), better: Better::Less, ..self }
    }

    /// The median may not be less.
    #[must_use]
    pub fn at_least(self, budget: f64) -> Self {
        Self { budget: Some(budget), better: Better::More, ..self }
    }

    /// Throughput.
    #[must_use]
    pub fn more_is_better(self) -> Self {
        Self { better: Better::More, ..self }
    }

    /// Of somebody else, or of the work itself.
    #[must_use]
    pub fn for_comparison(self) -> Self {
        Self { better: Better::Neither, ..self }
    }

    /// The middle one of its values.
    pub fn median(&self) -> f64 {
        median(&self.values)
    }

    fn bounds(&self) -> (f64, f64) {
        let fold = |by: fn(f64, f64) -> f64| self.values.iter().copied().reduce(by).unwrap_or(f64::NAN);
        (fold(f64::min), fold(f64::max))
    }

    /// Whether it is not within its budget. Not a number is within none.
    pub fn is_missed(&self) -> bool {
        self.budget.is_some_and(|budget| !self.is_within(budget))
    }

    /// Whether it is worse than `before` by more than this share of it.
    pub fn is_worse_than(&self, before: f64, share: f64) -> bool {
        match self.better {
            // Of what was less than nothing, too: a message that came before its time.
            Better::Less => !self.is_within(share.mul_add(before.abs(), before)),
            Better::More => !self.is_within(share.mul_add(-before.abs(), before)),
            Better::Neither => false,
        }
    }

    fn is_within(&self, bound: f64) -> bool {
        match self.better {
            Better::More => self.median() >= bound,
            Better::Less | Better::Neither => self.median() <= bound,
        }
    }

    /// As [`Self::from_json`] reads it.
    pub fn to_json(&self) -> Value {
        let better = match self.better {
            Better::Less => "less",
            Better::More => "more",
            Better::Neither => "neither",
        };
        json!({ "what": self.what, "unit": self.unit, "values": self.values, "better": better, "budget": self.budget })
    }

    /// What another process measured; `None` when it is something else.
    pub fn from_json(value: &Value) -> Option<Self> {
        let better = match value["better"].as_str()? {
            "less" => Better::Less,
            "more" => Better::More,
            _ => Better::Neither,
        };
        Some(Self {
            what: value["what"].as_str()?.to_owned(),
            unit: value["unit"].as_str()?.to_owned(),
            // JSON has no NaN: a value that is none is `null`.
            values: value["values"].as_array()?.iter().map(|it| it.as_f64().unwrap_or(f64::NAN)).collect(),
            better,
            budget: value["budget"].as_f64(),
        })
    }
}

/// The middle of some numbers; not a number without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A number with three digits that tell something, or all that stand before the point.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0.abs() {
            it if it >= 100.0 || it == 0.0 => 0,
            it if it >= 10.0 => 1,
            it if it >= 1.0 => 2,
            it if it >= 0.1 => 3,
            _ => 4,
        };
        write!(f, "{:.decimals$}", self.0)
    }
}

/// Figures as a table of Markdown that can be read as it stands. `before` is the median of the last kept run.
pub fn table(figures: &[Figure], before: impl Fn(&Figure) -> Option<f64>) -> String {
    let mut rows = vec![["figure", "median", "least to most", "of", "unit", "budget", "last kept"].map(String::from)];
    rows.extend(figures.iter().map(|it| {
        let (least, most) = it.bounds();
        let range = if it.values.len() > 1 { format!("{} to {}", Short(least), Short(most)) } else { String::new() };
        let sign = if it.better == Better::More { "≥" } else { "≤" };
        let missed = if it.is_missed() { " MISSED" } else { "" };
        [
            it.what.clone(),
            Short(it.median()).to_string(),
            range,
            it.values.len().to_string(),
            it.unit.clone(),
            it.budget.map_or_else(String::new, |budget| format!("{sign} {}{missed}", Short(budget))),
            before(it).map_or_else(String::new, |before| Short(before).to_string()),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |cells: &[String; 7]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule = widths.map(|width| "-".repeat(width));
    let (head, body) = rows.split_at(1);
    head.iter().chain([&rule]).chain(body).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_over_its_budget_is_missed_and_so_is_none() {
        let figure = |values: &[f64]| Figure::of_all("time", values.to_vec(), "ms").at_most(2.0);
        assert!(!figure(&[9.0, 1.0, 2.0]).is_missed(), "the middle one counts");
        assert!(figure(&[9.0, 1.0, 2.1]).is_missed());
        assert!(figure(&[f64::NAN]).is_missed() && figure(&[]).is_missed());
        let rate = |value| Figure::of("rate", value, "1/s").at_least(2.0);
        assert!(!rate(2.0).is_missed() && rate(1.9).is_missed() && rate(f64::NAN).is_missed());
    }

    #[test]
    fn worse_is_more_time_or_less_throughput_and_of_a_peer_nothing() {
        let time = Figure::of("time", 116.0, "ms");
        assert!(time.is_worse_than(100.0, 0.15) && !time.is_worse_than(101.0, 0.15));
        let rate = Figure::of("rate", 84.0, "1/s").more_is_better();
        assert!(rate.is_worse_than(100.0, 0.15) && !rate.is_worse_than(98.0, 0.15));
        assert!(!time.for_comparison().is_worse_than(1.0, 0.15));
        let early = Figure::of("early", -0.2, "s");
        assert!(
            !early.is_worse_than(-0.2, 0.15) && !early.is_worse_than(-0.22, 0.15) && early.is_worse_than(-0.3, 0.15)
        );
    }

    #[test]
    fn what_a_child_measured_arrives_whole() {
        let figures =
            [Figure::of_all("a, b", vec![1.5, f64::NAN], "ms").at_most(3.0), Figure::of("c", 2.0, "").for_comparison()];
        for figure in figures {
            let there = Figure::from_json(&figure.to_json()).unwrap();
            assert_eq!(format!("{there:?}"), format!("{figure:?}"));
        }
        assert_eq!(Figure::from_json(&json!({ "what": "a" })), None);
    }

    #[test]
    fn a_table_says_what_was_missed_and_what_it_was_before() {
        let figures =
            [Figure::of_all("start", vec![0.05, 0.31, 0.4], "s").at_most(0.3), Figure::of("peer", 1234.5, "s")];
        let table = table(&figures, |it| (it.what == "start").then_some(0.25));
        let expected = "\
            | figure | median | least to most   | of | unit | budget         | last kept |\n\
            | ------ | ------ | --------------- | -- | ---- | -------------- | --------- |\n\
            | start  | 0.310  | 0.0500 to 0.400 | 3  | s    | ≤ 0.300 MISSED | 0.250     |\n\
            | peer   | 1234   |                 | 1  | s    |                |           |\n";
        assert_eq!(table, expected);
    }
}
