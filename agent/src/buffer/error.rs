//! Why the buffer did not do what it was asked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sled_queue::QueueError;
use super::{MAX_APPEND_BYTES, MAX_APPEND_RECORDS, MAX_RECORD_BYTES, MIN_MAX_BYTES};

/// See the variants. Records that were not accepted have taken no sequence.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// Another agent works in the same state directory.
    #[error("the buffer in `{}` is in use by another process", directory.display())]
    InUse {
        /// The buffer's directory.
        directory: PathBuf,
    },
    /// Less space is free than the buffer leaves to others.
    #[error("the disk is full: {available} bytes are free, nothing is appended below {floor}")]
    DiskFull {
        /// Free bytes.
        available: u64,
        /// Bytes that must be free.
        floor: u64,
    },
    /// A file of the buffer cannot be worked with.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// `open`, `write`, …
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A generation's database cannot be worked with.
    #[error("cannot use the generation `{}`", generation.display())]
    Queue {
        /// Its directory.
        generation: PathBuf,
        /// What is wrong with it.
        source: QueueError,
    },
    /// A record larger than is kept.
    #[error("a record has {0} bytes, at most {MAX_RECORD_BYTES} are kept")]
    RecordTooLarge(usize),
    /// More in one call than is taken.
    #[error(
        "{records} records of {bytes} bytes at once, at most {MAX_APPEND_RECORDS} and {MAX_APPEND_BYTES} are taken"
    )]
    TooMany {
        /// Records in the call.
        records: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// A bound too small to work within.
    #[error("a buffer of {0} bytes is too small to work: it needs {MIN_MAX_BYTES}")]
    BoundTooSmall(u64),
    /// There is no buffer here.
    #[error("there is no buffer in `{}`", directory.display())]
    Absent {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The records were to be written together with those of other callers.
    #[error(transparent)]
    Together(Arc<BufferError>),
    /// The buffer was closed, or its thread ended.
    #[error("the buffer is closed")]
    Closed,
}

impl BufferError {
    /// For `map_err` on a file operation.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// With its causes, for the log.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Io { .. } | Self::Queue { .. } | Self::InUse { .. } => true,
            Self::Together(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Whether free space is what is missing.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Queue { source: QueueError::Full(_), .. } => true,
            Self::Together(error) => error.is_disk_full(),
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// What the operator can do; `None` where nothing needs doing.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => Some("stop the other agent, or give each its own state directory"),
            Self::DiskFull { .. } => Some("free some space; the agent goes on by itself"),
            Self::Io { .. } => Some("check that the state directory is writable for the agent's user"),
            Self::Queue { source: QueueError::Locked, .. } => Some("stop the other process that has it open"),
            Self::Queue { .. } => Some("run `tickbird-agent buffer verify`"),
            Self::BoundTooSmall(_) => Some("raise the buffer's bound"),
            Self::Absent { .. } => Some("check the state directory; the agent creates its buffer when it first runs"),
            Self::Together(error) => error.advice(),
            Self::RecordTooLarge(_) | Self::TooMany { .. } | Self::Closed => None,
        }
    }
}
