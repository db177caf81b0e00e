//! How far the collector's clock is ahead of ours, as its answers tell. Pure.

use jiff::SignedDuration;
use tickbird_shared::Timestamp;

/// Bounds of the offset. `date` is the answer's `Date` (RFC 9110, section 6.6.1), in whole seconds: the collector wrote
/// it somewhere between our two times.
pub(super) fn of(date: &str, sent: Timestamp, received: Timestamp) -> Option<(SignedDuration, SignedDuration)> {
    let second = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date.trim()).ok()?;
    let least = second.duration_since(received);
    let most = second.duration_since(sent).checked_add(SignedDuration::from_secs(1))?;
    (least <= most).then_some((least, most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_offset_lies_between_what_request_and_answer_allow() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let bounds = of(date, at("1994-11-06T08:49:37.2Z"), at("1994-11-06T08:49:37.6Z")).expect("a date");
        assert_eq!(bounds, (SignedDuration::from_millis(-600), SignedDuration::from_millis(800)));
        let (low, high) = of(date, at("1994-11-06T08:39:37Z"), at("1994-11-06T08:39:38Z")).expect("a date");
        assert_eq!((low.as_secs(), high.as_secs()), (599, 601), "ours is ten minutes behind");
        assert_eq!(of("soon", at("1994-11-06T08:49:37Z"), at("1994-11-06T08:49:38Z")), None);
        assert_eq!(of(date, at("1994-11-06T08:49:37Z"), at("1994-11-06T08:49:30Z")), None, "set back in between");
    }

    proptest! {
        #[test]
        fn never_panics(date in "\\PC{0,40}", sent: i32, took: u16) {
            let sent = Timestamp::from_second(i64::from(sent)).expect("in range");
            let received = sent.checked_add(SignedDuration::from_millis(took.into())).expect("in range");
            let _ = of(&date, sent, received);
        }
    }
}
