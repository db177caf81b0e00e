//! The buffer's files under any bytes: what a disk gave back, or somebody else wrote.

use super::cursor::{self, SLOT_BYTES};
use super::frame::{self, Codec, HEADER_BYTES, MAGIC, MAX_RAW_BYTES, MAX_RECORDS};
use super::losses::Losses;
use super::manifest::{Cause, LaneManifest, Life};

/// The same bytes as a frame, as a cursor's slot and as manifests.
pub(crate) fn files(data: &[u8]) {
    frames(data);
    manifests(data);
}

/// A frame as it is, a frame around these bytes whose checksum is right, and the same bytes as records.
fn frames(data: &[u8]) {
    let mut codec = Codec::new().expect("memory");
    tried(&mut codec, data);

    let Some((said, body)) = data.split_first_chunk::<16>() else { return };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(said);
    bytes.extend_from_slice(&u32::try_from(body.len()).expect("short").to_le_bytes());
    bytes.extend_from_slice(&frame::checksum(&bytes, body).to_le_bytes());
    bytes.extend_from_slice(body);
    tried(&mut codec, &bytes);

    let records: Vec<Vec<u8>> = body.split(|it| *it == b'\n').take(MAX_RECORDS).map(<[u8]>::to_vec).collect();
    let whole = codec.encode(7, &records).expect("memory");
    let (header, read) = codec.decode(&whole).expect("it was just made");
    assert!(header.first == 7 && header.next() == 7 + records.len() as u64 && read == records);
}

fn tried(codec: &mut Codec, bytes: &[u8]) {
    if let Ok((header, records)) = codec.decode(bytes) {
        assert!(records.len() == header.count as usize && records.len() <= MAX_RECORDS && header.first > 0);
        assert!(records.iter().map(|it| it.len() + 4).sum::<usize>() <= MAX_RAW_BYTES);
    }
}

/// A cursor's slot whose checksum is right, and both manifests with what is made of them.
fn manifests(data: &[u8]) {
    let mut slot = [0; SLOT_BYTES];
    let length = data.len().min(SLOT_BYTES);
    slot[..length].copy_from_slice(&data[..length]);
    let sum = crc32fast::hash(&slot[8..]);
    slot[4..8].copy_from_slice(&sum.to_le_bytes());
    let through = match cursor::decode(&slot) {
        Some((serial, it)) => {
            assert_eq!(cursor::encode(serial, it), slot);
            it.through
        }
        None => 0,
    };
    if let Ok(it) = Life::parse(data) {
        let text = serde_json::to_vec(&it).expect("it was read");
        assert_eq!(Life::parse(&text).ok(), Some(it));
    }
    let Ok(manifest) = LaneManifest::parse(data) else { return };
    let text = serde_json::to_vec(&manifest).expect("it was read");
    assert_eq!(LaneManifest::parse(&text).ok().as_ref(), Some(&manifest));
    let first = manifest.losses.first().map_or(0, |it| it.from);
    for through in [through, first, first.saturating_add(1)] {
        let mut losses = Losses::restore(&manifest.losses, through);
        let width = losses.width();
        let (from, to) = (through.saturating_add(1), through.saturating_add(1000));
        let added = if to < i64::MAX as u64 { losses.add(from, to, Cause::Evicted) } else { 0 };
        assert_eq!(losses.width(), width + added);
        assert!(losses.marks().is_sorted_by(|one, other| one.to < other.from), "in order and apart");
        let passed = losses.pass(u64::MAX);
        assert_eq!(passed.as_losses + passed.delivered_evicted + passed.delivered_quarantined, width + added);
        assert_eq!(losses.width(), 0);
    }
}
