//! A rule that is tried without a fleet: values are given, time passes, and what fires is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use tickbird_shared::{Severity, Timestamp};

use super::series::{Measure, Series, Source, Span};
use super::{Rule, Watch, labels_of};

/// What is there: labels, and the values that something with these labels has.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Of the thing and of its agent.
    pub labels: BTreeMap<String, String>,
    /// What it has.
    pub values: Vec<(Measure, Span)>,
}

impl Source for &[Given] {
    fn each(&self, measure: Measure, _: bool, act: &mut dyn FnMut(&Series<'_>)) {
        for given in *self {
            let of_measure = given.values.iter().filter(|(it, _)| *it == measure);
            for (_, span) in of_measure {
                act(&Series::given(measure.kind(), &given.labels, *span));
            }
        }
    }
}

/// A rule under trial.
#[derive(Debug)]
pub struct Trial<'a> {
    rule: &'a Rule,
    watch: Watch,
    passed: Duration,
}

impl<'a> Trial<'a> {
    /// Nothing has been seen.
    pub fn new(rule: &'a Rule) -> Self {
        Self { rule, watch: Watch::at_place(0), passed: Duration::ZERO }
    }

    /// Lets time pass in which this is there. A look at its very begin and at its very end is part of it.
    pub fn pass(&mut self, time: Duration, given: &[Given]) {
        let end = self.passed + time;
        while self.watch.is_due(end) {
            self.passed = self.watch.next_look();
            self.watch.look(self.rule, &given, Timestamp::UNIX_EPOCH, self.passed);
        }
        self.passed = end;
    }

    /// The labels of every group that fires.
    pub fn firing(&self) -> Vec<(BTreeMap<String, String>, Severity)> {
        let of = |(target, severity)| (labels_of(target).unwrap_or_default().into_iter().collect(), severity);
        self.watch.firing().map(of).collect()
    }
}
