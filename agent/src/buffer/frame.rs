//! A frame: a compressed run of records with consecutive sequences, checked by a CRC-32.
//!
//! Little-endian, 28 bytes of header, then the body:
//!
//! ```text
//! 0  "TBF" and the format version (1)      16  u32 bytes of the body before compression
//! 4  u32  records                          20  u32 bytes of the body as stored
//! 8  u64  sequence of the first record     24  u32 CRC-32 of bytes 0..24 and of the stored body
//! ```
//!
//! The body is zstd (level 1) of each record as `u32 length, bytes`. A record is opaque here: an upgraded agent
//! reads the backlog of the one before it. A frame is one value of the queue beneath, which writes it whole or not
//! at all; should it come back torn all the same, the checksum says so.

/// Version this build writes; others are not read.
pub(super) const MAGIC: [u8; 4] = *b"TBF\x01";
pub(super) const HEADER_BYTES: usize = 28;

/// Most records of one frame.
pub(super) const MAX_RECORDS: usize = 100;
/// A frame is closed when its records together reach this many bytes: some 100 findings, which compress to the
/// 2 to 4 KiB that the queue stores best.
pub(super) const TARGET_RAW_BYTES: usize = 32 << 10;
/// Largest body before compression that is read back: one record of the largest size and what fits beside it.
pub(super) const MAX_RAW_BYTES: usize = super::MAX_RECORD_BYTES + TARGET_RAW_BYTES + MAX_RECORDS * 4;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) first: u64,
    pub(super) count: u32,
    raw_bytes: u32,
    stored_bytes: u32,
}

/// Why bytes are not a frame that this build reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header says, or than a header has.
    #[error("the frame is cut short")]
    Short,
    /// Another version, or no frame at all.
    #[error("the frame is of a format that is not read here")]
    Format,
    /// Bytes changed since they were written.
    #[error("the frame's checksum does not match")]
    Checksum,
    /// The checksum matches and the content still cannot be: written by something else.
    #[error("the frame's body is not what its header says")]
    Body,
    /// The frame is another one than was asked for.
    #[error("the frame stands under another sequence than its own")]
    Misplaced,
}

/// Compresses and opens frames; keeps its two contexts, which cost more to make than to use.
pub(super) struct Codec {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
}

impl Codec {
    /// # Errors
    /// When the contexts cannot be made (no memory).
    pub(super) fn new() -> std::io::Result<Self> {
        let compressor = zstd::bulk::Compressor::new(1)?;
        Ok(Self { compressor, decompressor: zstd::bulk::Decompressor::new()?, raw: Vec::new() })
    }

    /// The frame of at most [`MAX_RECORDS`] records that take the sequences from `first`.
    ///
    /// # Errors
    /// When compression fails (no memory).
    pub(super) fn encode(&mut self, first: u64, records: &[Vec<u8>]) -> std::io::Result<Vec<u8>> {
        self.raw.clear();
        for record in records {
            self.raw.extend_from_slice(&length(record).to_le_bytes());
            self.raw.extend_from_slice(record);
        }
        let body = self.compressor.compress(&self.raw)?;
        let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&u32::try_from(records.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame.extend_from_slice(&first.to_le_bytes());
        frame.extend_from_slice(&length(&self.raw).to_le_bytes());
        frame.extend_from_slice(&length(&body).to_le_bytes());
        let checksum = checksum(&frame, &body);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame.extend_from_slice(&body);
        // One large record must not hold its memory for the rest of the agent's life.
        self.raw.shrink_to(2 * TARGET_RAW_BYTES);
        Ok(frame)
    }

    /// The records of a frame, in order.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes.
    pub(super) fn decode(&mut self, frame: &[u8]) -> Result<(Header, Vec<Vec<u8>>), FrameError> {
        let header = header(frame)?;
        let body = frame.get(HEADER_BYTES..).ok_or(FrameError::Short)?;
        let raw = self.decompressor.decompress(body, header.raw_bytes as usize).map_err(|_| FrameError::Body)?;
        let records = split(&raw, header.count as usize).ok_or(FrameError::Body)?;
        Ok((header, records))
    }
}

/// Reads the header and checks the whole frame against it, without opening the body.
pub(super) fn header(frame: &[u8]) -> Result<Header, FrameError> {
    let (head, body) = frame.split_at_checked(HEADER_BYTES).ok_or(FrameError::Short)?;
    if head[..4] != MAGIC {
        return Err(FrameError::Format);
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (count, raw_bytes, stored_bytes) = (word(4), word(16), word(20));
    if body.len() != stored_bytes as usize {
        return Err(FrameError::Short);
    }
    if checksum(&head[..24], body) != word(24) {
        return Err(FrameError::Checksum);
    }
    let first = u64::from(word(8)) | u64::from(word(12)) << 32;
    let is_sane = (1..=MAX_RECORDS).contains(&(count as usize)) && raw_bytes as usize <= MAX_RAW_BYTES && first > 0;
    is_sane.then_some(Header { first, count, raw_bytes, stored_bytes }).ok_or(FrameError::Body)
}

impl Header {
    /// Sequence after the last record.
    pub(super) const fn next(&self) -> u64 {
        self.first.saturating_add(self.count as u64)
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("records are bounded far below 4 GiB where they are accepted")
}

pub(super) fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

fn split(mut raw: &[u8], count: usize) -> Option<Vec<Vec<u8>>> {
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        records.push(record.to_vec());
        raw = rest;
    }
    raw.is_empty().then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codec() -> Codec {
        Codec::new().expect("contexts")
    }

    #[test]
    fn a_bit_turned_anywhere_is_noticed() {
        let mut codec = codec();
        let frame = codec.encode(7, &[b"{\"a\":1}".to_vec(), Vec::new()]).expect("encoded");
        for at in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(codec.decode(&damaged).is_err(), "bit {at} turned and nobody noticed");
        }
        for end in 0..frame.len() {
            assert_eq!(codec.decode(&frame[..end]).expect_err("cut"), FrameError::Short);
        }
    }

    #[test]
    fn a_hundred_findings_compress_to_a_few_kilobytes() {
        let record = |n: u32| {
            format!(
                r#"{{"finding":{{"check":"pool.idle_in_transaction","pid":{n},"since":"2026-01-01T00:00:0{}Z","summary":"holds {n} of 20"}}}}"#,
                n % 10
            )
        };
        let records: Vec<_> = (0..100).map(|n| record(n * 7919).into_bytes()).collect();
        let frame = codec().encode(1, &records).expect("encoded");
        assert!(frame.len() < 4096, "{} bytes", frame.len());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(first in 1_u64..u64::MAX / 2, records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..=MAX_RECORDS)) {
            let mut codec = codec();
            let frame = codec.encode(first, &records).expect("encoded");
            let (header, read) = codec.decode(&frame).expect("decoded");
            prop_assert_eq!(header.next(), first + records.len() as u64);
            prop_assert_eq!(read, records);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_magic: bool) {
            let mut bytes = bytes;
            if with_magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            prop_assert!(codec().decode(&bytes).is_err());
        }

        /// A checksum guards against chance, not against a body that lies: the lengths within are checked too.
        #[test]
        fn a_lying_body_is_an_error(raw in proptest::collection::vec(any::<u8>(), 0..64), count in 1_usize..5) {
            if let Some(records) = split(&raw, count) {
                prop_assert_eq!(records.iter().map(|record| record.len() + 4).sum::<usize>(), raw.len());
            }
        }
    }
}
