//! What the status socket answers, under any bytes.

use jiff::tz::TimeZone;

use super::Report;
use super::render::{self, Style};

/// A report, as a person reads it.
pub(crate) fn report(data: &[u8]) {
    let Ok(report) = serde_json::from_slice::<Report>(data) else { return };
    let _ = report.exit_code();
    let style = Style { colour: false, zone: TimeZone::UTC, checks: true, sessions: true, why: Some(4121) };
    let why = render::report(&report, &style);
    let shown = render::report(&report, &Style { why: None, ..style });
    for text in [why, shown] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?} moves the cursor");
    }
}
