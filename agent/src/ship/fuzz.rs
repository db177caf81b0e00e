//! The collector's answers under any bytes.

use std::time::Duration;

use tickbird_shared::Timestamp;

use super::answer::{Verdict, judge};
use super::connection::Answer;
use super::{Origin, ShipError, enrolment, renewal, skew};

const STATUSES: [u16; 12] = [200, 201, 204, 400, 401, 408, 409, 413, 422, 429, 500, 503];

/// The first line is the value of `Retry-After` and of `Date`, what follows the body, with each status.
pub(crate) fn answers(data: &[u8]) {
    let at = data.iter().position(|it| *it == b'\n').unwrap_or(0);
    let head = String::from_utf8_lossy(&data[..at]).into_owned();
    let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
    for status in STATUSES {
        let body = data[at..].to_vec();
        let answer = Answer { status, retry_after: Some(head.clone()), date: Some(head.clone()), body };
        match judge(&answer, now) {
            Ok(Verdict::Acknowledged(_)) => assert_eq!(status, 200),
            Ok(Verdict::Split { code }) => assert!(code.len() <= 64 && code.is_ascii()),
            Ok(Verdict::Gap { .. } | Verdict::OtherStart) => assert_eq!(status, 409),
            Err(ShipError::Limited { retry_after } | ShipError::Unavailable { retry_after, .. }) => {
                assert!(retry_after.is_none_or(|it| it <= Duration::from_secs(600)));
            }
            Err(error) => assert!(error.to_string().len() <= 400),
        }
        if let Err(error) = enrolment::read(&answer) {
            assert!(error.to_string().len() <= 600);
        }
        if let Err(error) = renewal::read(&answer) {
            assert!(error.to_string().len() <= 400);
        }
    }
    let received = now + jiff::SignedDuration::from_secs(2);
    assert!(skew::of(&head, now, received).is_none_or(|(least, most)| least <= most));
    if let Ok(origin) = head.parse::<Origin>() {
        assert_eq!(origin.to_string().parse::<Origin>(), Ok(origin), "it is read as it is shown");
    }
}
