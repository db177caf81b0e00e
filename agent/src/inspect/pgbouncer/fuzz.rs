//! Rows of PgBouncer's console under any bytes.

use std::collections::HashMap;

use super::console::{Answers, Columns, Settings};

struct Row<'a>(HashMap<&'a str, &'a str>);

impl Columns for Row<'_> {
    fn text(&self, column: &str) -> Option<&str> {
        self.0.get(column).copied()
    }
}

/// As psql prints it: tables with an empty line between them, each a line of names and lines of cells between `|`.
pub(crate) fn rows(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut tables = text.split("\n\n").map(|table| {
        let mut lines = table.lines().map(cells);
        let head = lines.next().unwrap_or_default();
        lines.map(|line| Row(head.iter().copied().zip(line).collect())).collect::<Vec<_>>()
    });
    let mut next = || tables.next().unwrap_or_default();
    let answers = Answers { pools: next(), servers: next(), clients: next() };
    let settings = Settings::read(&next(), &next());
    if let Ok(all) = answers.read(&settings, "stats") {
        assert!(all.sessions.len() <= answers.clients.len() && all.waiters.len() <= all.sessions.len());
        assert!(all.waiters.is_sorted_by_key(|it| std::cmp::Reverse(it.waited)));
    }
}

fn cells(line: &str) -> Vec<&str> {
    line.split('|').map(str::trim).collect()
}
