//! The eleven ways to misbehave, each with what it has to be answered and counted as.

use std::time::Duration;

use serde_json::{Value, json};
use tickbird_tests::https::{Answer, Connection};
use tickbird_tests::simulated::RECORDS;
use tickbird_tests::wait::{Paced, paced};
use tickbird_tests::{Seconds, Simulated, StageError};

/// A status and the code of its problem document, or of a record that was refused.
pub(super) type Seen = (u16, String);

type Deed<'a> = Box<dyn FnMut() -> Result<Vec<Seen>, StageError> + 'a>;

/// One way to misbehave.
pub(super) struct Misdeed {
    pub(super) name: &'static str,
    /// Makes ready what is done again and again.
    pub(super) prepare: for<'a> fn(&'a Simulated) -> Deed<'a>,
    /// What it must have been answered.
    pub(super) answers: &'static [(u16, &'static str)],
    /// What must be counted under its agent's name.
    pub(super) counted: &'static [&'static str],
    /// Whether it lets the collector wait, and so does little: nobody needs to be told.
    pub(super) waits: bool,
}

const fn misdeed(
    name: &'static str,
    prepare: for<'a> fn(&'a Simulated) -> Deed<'a>,
    answers: &'static [(u16, &'static str)],
    counted: &'static [&'static str],
) -> Misdeed {
    Misdeed { name, prepare, answers, counted, waits: false }
}

pub(super) const MISDEEDS: &[Misdeed] = &[
    misdeed("crowds", crowds, &[(429, "too_many_connections")], &["too_many_connections", "too_many_handshakes"]),
    misdeed("floods", floods, &[(429, "rate_limited"), (429, "wait_ignored")], &["rate_limited", "wait_ignored"]),
    Misdeed { waits: true, ..misdeed("writes slowly", writes_slowly, &[(408, "slow")], &["slow"]) },
    Misdeed { waits: true, ..misdeed("reads nothing", reads_nothing, &[], &["unread"]) },
    Misdeed { waits: true, ..misdeed("says half a word", says_half_a_word, &[], &["silent"]) },
    misdeed("sends bombs", sends_bombs, &[(413, "too_large"), (429, "rate_limited")], &["too_large"]),
    misdeed("wants a large window", wants_a_large_window, &[(400, "bad_zstd")], &["bad_zstd"]),
    misdeed(
        "nests and labels",
        nests_and_labels,
        &[(200, "evidence_not_an_object"), (200, "malformed"), (200, "key_too_long")],
        &["evidence_not_an_object", "malformed", "key_too_long"],
    ),
    misdeed("has too many series", has_too_many_series, &[(200, "too_many_series")], &["too_many_series"]),
    misdeed("fires too much", fires_too_much, &[], &["too_many_firing"]),
    misdeed(
        "has no order and no clock",
        has_no_order_and_no_clock,
        &[(409, "gap"), (200, "cloned_identity")],
        &["gap", "clock_skew"],
    ),
];

const ZSTD: &str = "content-encoding: zstd\r\n";

/// What an answer says: its code, or those of the records that it refuses.
fn read(answer: &Answer) -> Vec<Seen> {
    let body = answer.json().unwrap_or_default();
    let refused = body["refused"].as_array().cloned().unwrap_or_default();
    let mut codes: Vec<&str> = refused.iter().filter_map(|it| it["code"].as_str()).collect();
    codes.extend(body["code"].as_str());
    codes.dedup();
    if answer.status == 429 {
        assert!(answer.header("retry-after").is_some(), "when to come back: {answer:?}");
    }
    codes.into_iter().map(|code| (answer.status, code.to_owned())).collect()
}

/// A connection that is kept, and made anew when the collector has ended it.
struct Line<'a> {
    agent: &'a Simulated,
    open: Option<Connection>,
}

impl<'a> Line<'a> {
    const fn of(agent: &'a Simulated) -> Self {
        Self { agent, open: None }
    }

    fn sends(&mut self, headers: &str, body: &[u8]) -> Result<Vec<Seen>, StageError> {
        let mut connection = match self.open.take() {
            Some(open) => open,
            None => self.agent.connect()?,
        };
        let answer = connection.ask("POST", RECORDS, headers, body)?;
        if answer.header("connection") != Some("close") {
            self.open = Some(connection);
        }
        Ok(read(&answer))
    }
}

fn text(batch: &Value) -> Vec<u8> {
    batch.to_string().into_bytes()
}

fn compressed(batch: &Value) -> Vec<u8> {
    zstd::bulk::compress(&text(batch), 1).expect("memory can be compressed")
}

/// A third connection, and a fourth, and all of them anew each time.
fn crowds(agent: &Simulated) -> Deed<'_> {
    let beat = text(&agent.batch("urgent", 1, &[]));
    Box::new(move || {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let mut connection = agent.connect()?;
            seen.extend(read(&connection.ask("POST", RECORDS, "", &beat)?));
            open.push(connection);
        }
        Ok(seen)
    })
}

/// The same ten thousand records, without a pause.
fn floods(agent: &Simulated) -> Deed<'_> {
    let body = compressed(&agent.batch("bulk", 1, &vec![agent.summary("pool:shop"); 10_000]));
    let mut line = Line::of(agent);
    Box::new(move || line.sends(ZSTD, &body))
}

/// A body that comes, and comes, and does not end.
fn writes_slowly(agent: &Simulated) -> Deed<'_> {
    Box::new(move || {
        let mut connection = agent.connect()?;
        connection.say(&format!("POST {RECORDS} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"))?;
        // It may be cut in the middle of a word.
        let _ = paced(Duration::from_millis(100), 2.s(), || connection.write(&[b' '; 100]).map(|()| Paced::More));
        Ok(read(&connection.answer()?))
    })
}

/// Asks for answers of several hundred kilobytes, and waits with reading until they are long overdue.
fn reads_nothing(agent: &Simulated) -> Deed<'_> {
    let body = compressed(&agent.batch("urgent", 1, &vec![json!(7); 9_000]));
    Box::new(move || {
        let mut connection = agent.client.connect_narrow(&agent.address)?;
        for _ in 0..2 {
            let length = body.len();
            connection.say(&format!("POST {RECORDS} HTTP/1.1\r\nhost: x\r\n{ZSTD}content-length: {length}\r\n\r\n"))?;
            connection.write(&body)?;
        }
        // What it says now is not heard any more once the collector has given it up.
        paced(Duration::from_millis(100), 5.s(), || {
            Ok(if connection.say("POST ").is_err() { Paced::Enough } else { Paced::More })
        })?;
        Ok(Vec::new())
    })
}

/// Half a head, as from a host that lost its power.
fn says_half_a_word(agent: &Simulated) -> Deed<'_> {
    Box::new(move || {
        let mut connection = agent.connect()?;
        connection.say("POST /v1/rec")?;
        connection.ended(super::idle() + 10.s())?;
        Ok(Vec::new())
    })
}

/// A few kilobytes that become more than sixteen megabytes.
fn sends_bombs(agent: &Simulated) -> Deed<'_> {
    let bomb = zstd::bulk::compress(&vec![b' '; (16 << 20) + 1], 1).expect("memory can be compressed");
    let mut line = Line::of(agent);
    Box::new(move || line.sends(ZSTD, &bomb))
}

/// A frame that asks its reader for a window of 32 MiB.
fn wants_a_large_window(agent: &Simulated) -> Deed<'_> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("makes one");
    encoder.window_log(25).expect("a legal window");
    std::io::Write::write_all(&mut encoder, &vec![b' '; 40 << 20]).expect("memory can be compressed");
    let body = encoder.finish().expect("memory can be compressed");
    let mut line = Line::of(agent);
    Box::new(move || line.sends(ZSTD, &body))
}

/// Evidence that is too deep, a label that is too long, a target that is too long.
fn nests_and_labels(agent: &Simulated) -> Deed<'_> {
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    let inventory = json!({ "inventory": {
        "version": "0", "host": "web-1", "system": "Linux", "labels": { "service": "x".repeat(300) }, "targets": [],
        "observed_at": jiff::Timestamp::now(),
    } });
    let records =
        [agent.finding("pool:shop", &json!({ "deep": deep })), inventory, agent.finding(&"x".repeat(600), &json!({}))];
    let body = text(&agent.batch("urgent", 1, &records));
    let mut line = Line::of(agent);
    Box::new(move || line.sends("", &body))
}

/// A hundred series more than an agent may have.
fn has_too_many_series(agent: &Simulated) -> Deed<'_> {
    let records: Vec<_> = (0..2_100).map(|it| agent.summary(&format!("pool:shop-{it}"))).collect();
    let body = compressed(&agent.batch("bulk", 1, &records));
    let mut line = Line::of(agent);
    Box::new(move || line.sends(ZSTD, &body))
}

/// A hundred findings more than may fire of one agent, and further ones for ever.
fn fires_too_much(agent: &Simulated) -> Deed<'_> {
    let (mut next, mut count) = (1, 1_100);
    let mut line = Line::of(agent);
    Box::new(move || {
        let findings: Vec<_> =
            (next..next + count).map(|it| agent.finding(&format!("pool:shop-{it}"), &json!({}))).collect();
        let seen = line.sends(ZSTD, &compressed(&agent.batch("urgent", next, &findings)))?;
        // What was put off comes again.
        if seen.is_empty() {
            (next, count) = (next + count, 10);
        }
        Ok(seen)
    })
}

/// Sequences ahead, again, and again with other content; by a clock that is an hour ahead.
fn has_no_order_and_no_clock(agent: &Simulated) -> Deed<'_> {
    let of = |first: u64, target: &str| {
        let mut batch = agent.batch("urgent", first, &[agent.finding(target, &json!({}))]);
        let ahead = jiff::Timestamp::now() + Duration::from_secs(3_600);
        batch["sent_at"] = json!(ahead);
        text(&batch)
    };
    let (first, ahead, other) = (of(1, "pool:shop"), of(9, "pool:shop"), of(1, "pool:other"));
    let mut line = Line::of(agent);
    Box::new(move || {
        let mut seen = Vec::new();
        for body in [&first, &ahead, &first, &other] {
            seen.extend(line.sends("", body)?);
        }
        Ok(seen)
    })
}
