//! What the collector's answer means. Pure: status, `Retry-After` and body in, a verdict out.

use std::time::Duration;

use serde::Deserialize;
use tickbird_shared::{Acknowledgement, Timestamp};

use super::ShipError;
use super::connection::Answer;
use crate::scrub;

/// A peer that asks for more than this is not obeyed to the letter: it would be a day lost to a typing error.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Most characters of a code that are kept.
const MAX_CODE_CHARS: usize = 64;

/// What to do next.
#[derive(Debug)]
pub enum Verdict {
    /// Settled up to a sequence.
    Acknowledged(Acknowledgement),
    /// The batch cannot be taken as it is: too large, or something in it cannot be read. A part of it may.
    Split {
        /// Why, in the collector's word.
        code: String,
    },
    /// The collector does not know what comes before the batch.
    Gap {
        /// Last sequence it has settled.
        through: u64,
    },
    /// The epoch goes on from another start of the buffer: this one is a copy, or was put back to an older state.
    OtherStart,
}

/// An RFC 9457 document, as far as we read it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: Option<String>,
    through: Option<u64>,
}

/// Reads an answer. `now` is the wall time, for a `Retry-After` that is a date.
///
/// # Errors
/// When the collector cannot, or will not, take anything now.
pub(super) fn judge(answer: &Answer, now: Timestamp) -> Result<Verdict, ShipError> {
    if answer.status == 200 {
        let acknowledgement = serde_json::from_slice(&answer.body).map_err(|_| ShipError::Garbage)?;
        return Ok(Verdict::Acknowledged(acknowledgement));
    }
    let problem: Problem = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = problem.code.as_deref().map_or_else(|| format!("http_{}", answer.status), code);
    let retry_after = answer.retry_after.as_deref().and_then(|text| retry_after(text, now));
    match (answer.status, code.as_str()) {
        (400, "unsupported_protocol") => Err(ShipError::NotUnderstood { status: 400, code }),
        (400 | 413 | 422, _) => {
            Ok(Verdict::Split { code: if answer.status == 413 { "too_large".into() } else { code } })
        }
        (409, "gap") => problem.through.map(|through| Verdict::Gap { through }).ok_or(ShipError::Garbage),
        (409, "other_start") => Ok(Verdict::OtherStart),
        (401 | 403, _) => Err(ShipError::Denied { code }),
        (429, _) => Err(ShipError::Limited { retry_after }),
        (408 | 500..=599, _) => Err(ShipError::Unavailable { status: answer.status, code, retry_after }),
        (status, _) => Err(ShipError::NotUnderstood { status, code }),
    }
}

/// A code is a word; whatever else a stranger sends is made harmless.
fn code(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    let kept: String = text.chars().filter(|c| is_plain(*c)).take(MAX_CODE_CHARS).collect();
    scrub::text(&kept, MAX_CODE_CHARS)
}

/// Seconds, or an HTTP date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            Duration::from_secs(u64::try_from(until.as_second() - now.as_second()).unwrap_or_default())
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "1994-11-06T08:49:00Z".parse().expect("a time")
    }

    fn judged(status: u16, retry_after: Option<&str>, body: &str) -> Result<Verdict, ShipError> {
        judge(
            &Answer { status, retry_after: retry_after.map(str::to_owned), date: None, body: body.as_bytes().to_vec() },
            now(),
        )
    }

    #[test]
    fn each_answer_has_its_verdict() {
        let acknowledged = judged(200, None, r#"{"through":7,"refused":[{"seq":3,"code":"malformed"}]}"#);
        assert!(matches!(acknowledged, Ok(Verdict::Acknowledged(it)) if it.through == 7 && it.refused.len() == 1));
        assert!(matches!(judged(200, None, "<html>"), Err(ShipError::Garbage)));
        assert!(matches!(judged(413, None, "anything"), Ok(Verdict::Split { code }) if code == "too_large"));
        let split = judged(400, None, r#"{"code":"malformed"}"#);
        assert!(matches!(split, Ok(Verdict::Split { code }) if code == "malformed"));
        let old = judged(400, None, r#"{"code":"unsupported_protocol"}"#);
        assert!(matches!(old, Err(ShipError::NotUnderstood { status: 400, .. })));
        let gap = judged(409, None, r#"{"code":"gap","through":12}"#);
        assert!(matches!(gap, Ok(Verdict::Gap { through: 12 })));
        assert!(matches!(judged(409, None, r#"{"code":"gap"}"#), Err(ShipError::Garbage)));
        assert!(matches!(judged(409, None, r#"{"code":"other_start"}"#), Ok(Verdict::OtherStart)));
        assert!(matches!(judged(409, None, "{}"), Err(ShipError::NotUnderstood { status: 409, .. })));
        assert!(
            matches!(judged(403, None, r#"{"code":"denied"}"#), Err(ShipError::Denied { code }) if code == "denied")
        );
        assert!(
            matches!(judged(404, None, ""), Err(ShipError::NotUnderstood { status: 404, code }) if code == "http_404")
        );
        assert!(matches!(judged(302, None, ""), Err(ShipError::NotUnderstood { status: 302, .. })));
    }

    #[test]
    fn the_wish_to_wait_is_read_in_both_forms_and_bounded() {
        let wait = |text| match judged(503, Some(text), "") {
            Err(ShipError::Unavailable { retry_after, .. }) => retry_after.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0), "a date that is past");
        assert_eq!(wait("99999999"), Some(600));
        assert_eq!(wait("soon"), None);
        let limited = judged(429, Some("2"), "");
        assert!(matches!(limited, Err(ShipError::Limited { retry_after: Some(wait) }) if wait.as_secs() == 2));
    }

    #[test]
    fn a_code_from_a_stranger_is_made_harmless() {
        let body = format!(r#"{{"code":"\u001b[31m{}"}}"#, "a".repeat(500));
        let Err(ShipError::Denied { code }) = judged(401, None, &body) else { panic!("denied") };
        assert!(code.len() <= MAX_CODE_CHARS && code.is_ascii(), "{code}");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(status: u16, wait in proptest::option::of("\\PC{0,40}"), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let verdict = judge(&Answer { status, retry_after: wait, date: None, body }, now());
            prop_assert!(status == 200 || !matches!(verdict, Ok(Verdict::Acknowledged(_))));
        }
    }
}
