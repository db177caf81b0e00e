//! Bodies of batches and the heads of requests, under any bytes.

use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use tickbird_shared::Timestamp;
use tickbird_shared::start::MAX_EARLIER;

use super::decode::{Encoding, blank, decode, decompress};
use super::listener::{encoding, is_announced_well};
use crate::ledger::{AgentKey, Content};

/// Most text of a body here; the shipped bound is sixteen times that.
const LIMIT: usize = 1 << 20;

/// A body, as it is and as zstd.
pub(crate) fn batches(data: &[u8]) {
    for form in [Encoding::Plain, Encoding::Zstd] {
        if let Ok(text) = decompress(data, form, LIMIT) {
            assert!(text.len() <= LIMIT);
        }
        body(data, form);
    }
}

fn body(data: &[u8], form: Encoding) {
    let agent = AgentKey::new("default", "a-1");
    let series = |target: &str, measure: &str| (target.len() + measure.len()) as u64;
    let decoded = match decode(&agent, data, form, LIMIT, Timestamp::UNIX_EPOCH, series) {
        Ok(decoded) => decoded,
        Err(error) => {
            let status = error.problem().into_response().status();
            assert!(status.is_client_error() && status != StatusCode::NOT_FOUND, "{status}");
            return;
        }
    };
    let incoming = decoded.incoming;
    assert!(incoming.text_bytes <= LIMIT && incoming.records.len() <= incoming.text_bytes);
    assert!(incoming.start.as_ref().is_none_or(|it| it.is_sound() && it.before.len() <= MAX_EARLIER));
    let mut next = incoming.first;
    for record in &incoming.records {
        assert!(record.seq == next && record.width > 0, "every sequence has one place");
        next += record.width;
        if let Content::Refused(code) = record.content {
            assert!(!code.is_empty());
        }
    }
    assert!(next <= i64::MAX as u64);
    let in_body = |at: &usize| matches!(incoming.records[*at].content, Content::InBody);
    let places: Vec<usize> = (0..incoming.records.len()).filter(in_body).collect();
    assert!(decoded.series.iter().all(|(at, _)| in_body(at)));
    assert_eq!(incoming.body.is_empty(), places.is_empty());
    if !places.is_empty() {
        let emptied = blank(&incoming.body, &places).expect("what was kept can be read");
        let again = decode(&agent, &emptied, Encoding::Zstd, 2 * LIMIT, Timestamp::UNIX_EPOCH, series);
        let again = again.expect("what was emptied can be read").incoming;
        assert_eq!(again.records.len(), incoming.records.len(), "the others keep their places");
        assert_eq!(again.start, incoming.start);
    }
}

/// The value of each header that decides how a body is read.
pub(crate) fn heads(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let headers = HeaderMap::from_iter([(CONTENT_ENCODING, value.clone()), (CONTENT_LENGTH, value)]);
    assert!(encoding(&headers).is_err() || data == b"identity" || data == b"zstd");
    assert!(is_announced_well(&headers).is_err() || data.iter().all(|it| it.is_ascii_digit() || *it == b'+'));
}
