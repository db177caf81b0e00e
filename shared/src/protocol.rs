//! The numbers both ends hold each other to.

/// Version of the wire. A collector answers a version it does not read with 400 `unsupported_protocol`.
pub const PROTOCOL: u32 = 1;

/// Path of the one request that carries records.
pub const RECORDS_PATH: &str = "/v1/records";
/// Path of enrolment, on the listener for people.
pub const ENROL_PATH: &str = "/v1/enroll";
/// Path of the renewal of a certificate, on the listener for agents.
pub const RENEW_PATH: &str = "/v1/renew";

/// Header in which an agent says which id it believes to have. One that its certificate does not name is answered 403
/// `other_agent`, so that nothing is judged, and refused for ever, under a wrong name.
pub const AGENT_HEADER: &str = "tickbird-agent";

/// Check of the finding by which an agent proves the way of all others: `info`, so a collector that does not know it stores it and tells
/// nobody. It fires each time; resolved, it says that none comes any more.
pub const CANARY_CHECK: &str = "agent.canary";
/// Member of its evidence: seconds until the next one.
pub const CANARY_EVERY: &str = "every_seconds";

/// Largest body as sent (compressed), in bytes. Enforced while reading; more is answered 413.
pub const MAX_COMPRESSED_BYTES: usize = 1 << 20;
/// Largest body after decompression, in bytes. Enforced while reading; more is answered 413.
pub const MAX_DECOMPRESSED_BYTES: usize = 16 << 20;
/// Largest window a zstd frame may ask the reader to keep, as a power of two: 8 MiB.
pub const MAX_WINDOW_LOG: u32 = 23;
/// Deepest nesting of a record's JSON.
pub const MAX_JSON_DEPTH: usize = 32;
/// Largest evidence of one finding, in bytes of JSON.
pub const MAX_EVIDENCE_BYTES: usize = 8 << 10;
/// Most labels of one thing.
pub const MAX_LABELS: usize = 64;
/// Longest label name or value, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;
/// Longest check id, target key or sub-key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// Longest summary, advice or reason, in bytes.
pub const MAX_TEXT_BYTES: usize = 2048;
/// Most records of one batch.
pub const MAX_RECORDS: usize = 10_000;
/// Most firing fingerprints of one agent.
pub const MAX_FIRING: usize = 1_000;

/// An empty batch goes out when nothing else has for this long, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 10;
/// An agent not heard from for this long is missing, in seconds: two heartbeats lost, and half of one for jitter.
pub const PRESENCE_SECONDS: u64 = 30;
/// The agent repeats its list of firing fingerprints this often, in seconds.
pub const OPEN_SECONDS: u64 = 600;
