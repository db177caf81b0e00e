//! The generations of a lane: which there are, which two are open, and how they come and go.
//!
//! The newest is written, the oldest is read; when they are the same it is one handle. Any other is opened only to be
//! read past damage. A generation that was drained is deleted, unless records are missing from it: then it is moved
//! aside like one that cannot be opened at all.

use std::io;
use std::path::{Path, PathBuf};

use tickbird_shared::Lane;

use super::manifest::GenerationMark;
use super::quarantine;
use super::sled_queue::{QueueError, SledQueue};
use super::space::{Space, on_disk};
use crate::durable_file::sync_directory;

/// See the module. Never empty.
pub(super) struct Generations {
    lane: Lane,
    directory: PathBuf,
    quarantine: PathBuf,
    space: Space,
    /// Oldest first.
    list: Vec<Generation>,
    writer: Option<SledQueue>,
    reader: Option<(u64, SledQueue)>,
}

struct Generation {
    mark: GenerationMark,
    on_disk: u64,
}

/// Name of a generation's directory.
pub(super) fn name(number: u64) -> String {
    format!("q-{number:06}")
}

impl Generations {
    /// Those of a manifest, in `directory`. Directories beside them are drained, evicted, or nothing in them was ever
    /// accepted: a crash came before they were removed, which is made up for here.
    pub(super) fn new(lane: Lane, directory: &Path, quarantine: &Path, space: Space, marks: &[GenerationMark]) -> Self {
        let measured =
            |mark: &GenerationMark| Generation { mark: *mark, on_disk: on_disk(&directory.join(name(mark.number))) };
        let list: Vec<_> = marks.iter().map(measured).collect();
        assert!(!list.is_empty(), "a manifest read or begun has a generation");
        let (directory, quarantine) = (directory.to_owned(), quarantine.to_owned());
        let generations = Self { lane, directory, quarantine, space, list, writer: None, reader: None };
        generations.remove_orphans();
        generations
    }

    pub(super) fn marks(&self) -> Vec<GenerationMark> {
        self.list.iter().map(|it| it.mark).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn newest(&self) -> GenerationMark {
        self.list.last().expect("never empty").mark
    }

    pub(super) fn oldest(&self) -> GenerationMark {
        self.list.first().expect("never empty").mark
    }

    /// The one after the oldest.
    pub(super) fn second(&self) -> Option<GenerationMark> {
        self.list.get(1).map(|it| it.mark)
    }

    /// The generation that holds `sequence`, and where the next one begins.
    pub(super) fn holding(&self, sequence: u64) -> Option<(GenerationMark, Option<u64>)> {
        let at = self.list.iter().rposition(|it| it.mark.first <= sequence)?;
        Some((self.list[at].mark, self.list.get(at + 1).map(|it| it.mark.first)))
    }

    /// Records are missing from it: it is moved aside when it is drained.
    pub(super) fn mark_damaged(&mut self, number: u64) {
        if let Some(found) = self.list.iter_mut().find(|it| it.mark.number == number) {
            found.mark.is_damaged = true;
        }
    }

    /// The open queue of a generation; one that is neither written nor read takes the reader's place.
    pub(super) fn queue(&mut self, number: u64) -> Result<&mut SledQueue, QueueError> {
        if number == self.newest().number {
            if self.writer.is_none() {
                self.writer = Some(self.open(number)?);
            }
            return Ok(self.writer.as_mut().expect("set above"));
        }
        if self.reader.as_ref().is_none_or(|(open, _)| *open != number) {
            self.reader = None;
            self.reader = Some((number, self.open(number)?));
        }
        Ok(&mut self.reader.as_mut().expect("set above").1)
    }

    /// Lets go of the newest one's handle: sled refuses one that failed once.
    pub(super) fn close_writer(&mut self) {
        self.writer = None;
    }

    /// Whether the newest was ever written to.
    pub(super) fn has_newest_on_disk(&self) -> bool {
        self.path(self.newest().number).exists()
    }

    /// Begins a generation at `first` and opens it. `save` writes the manifest; should that fail, there is none.
    pub(super) fn begin<E: From<QueueFailure>>(
        &mut self,
        first: u64,
        save: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let closed = self.newest().number;
        let mark = GenerationMark::new(closed + 1, first);
        let path = self.path(mark.number);
        let opened = match std::fs::remove_dir_all(&path) {
            // An earlier attempt that did not get as far as the manifest: nothing in it was accepted.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(QueueError::Io(error)),
            _ => self.open(mark.number),
        };
        let queue = opened.map_err(|source| QueueFailure { generation: path.clone(), source })?;
        self.measure();
        self.list.push(Generation { mark, on_disk: on_disk(&path) });
        if let Err(error) = save(self) {
            self.list.pop();
            return Err(error);
        }
        // The generation just closed is the one to read next, unless an older one is.
        let writer = self.writer.replace(queue);
        if self.list.len() == 2 && self.reader.is_none() {
            self.reader = writer.map(|queue| (closed, queue));
        }
        Ok(())
    }

    /// Takes the oldest off the list; [`Self::dispose`] is to follow. The newest stays.
    pub(super) fn take_oldest(&mut self) -> GenerationMark {
        assert!(self.list.len() > 1, "the newest is written to");
        self.list.remove(0).mark
    }

    /// Deletes a generation that is off the list, or moves it aside.
    pub(super) fn dispose(&mut self, mark: GenerationMark) -> io::Result<()> {
        if self.reader.as_ref().is_some_and(|(open, _)| *open == mark.number) {
            self.reader = None;
        }
        let path = self.path(mark.number);
        if mark.is_damaged {
            return self.move_aside(&path, mark.number);
        }
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Moves a generation that cannot be read out of the way and off the list. When it was the newest, one that is to
    /// hold the sequences from `next` takes its place. Answers the range it held: from, and where the next begins.
    pub(super) fn quarantine(&mut self, number: u64, next: u64) -> io::Result<(u64, u64)> {
        if number == self.newest().number {
            self.writer = None;
            self.list.push(Generation { mark: GenerationMark::new(number + 1, next), on_disk: 0 });
        } else {
            self.reader = None;
        }
        self.move_aside(&self.path(number), number)?;
        let at = self.list.iter().position(|it| it.mark.number == number).expect("only listed ones are opened");
        let gone = self.list.remove(at);
        Ok((gone.mark.first, self.list[at].mark.first))
    }

    /// Measures the newest again.
    pub(super) fn measure(&mut self) {
        let path = self.path(self.newest().number);
        if let Some(newest) = self.list.last_mut() {
            newest.on_disk = on_disk(&path);
        }
    }

    /// Bytes of all on disk, as last measured.
    pub(super) fn on_disk(&self) -> u64 {
        self.list.iter().map(|it| it.on_disk).sum()
    }

    /// Bytes of the newest on disk, as last measured.
    pub(super) fn newest_on_disk(&self) -> u64 {
        self.list.last().map_or(0, |it| it.on_disk)
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.directory.join(name(number))
    }

    fn open(&self, number: u64) -> Result<SledQueue, QueueError> {
        let path = self.path(number);
        let is_new = !path.exists();
        let queue = match SledQueue::open(&path) {
            Err(QueueError::Full(_)) => {
                // sled writes even to open. This is what the ballast is for.
                self.space.drop_ballast();
                SledQueue::open(&path)?
            }
            opened => opened?,
        };
        if is_new {
            sync_directory(&self.directory).map_err(QueueError::Io)?;
        }
        Ok(queue)
    }

    fn move_aside(&self, path: &Path, number: u64) -> io::Result<()> {
        quarantine::take(path, &self.quarantine, &format!("{}-{}", self.lane, name(number)))
    }

    fn remove_orphans(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let number = file_name.to_str().and_then(|name| name.strip_prefix("q-")?.parse().ok());
            let is_known = |number: u64| self.list.iter().any(|it| it.mark.number == number);
            if number.is_some_and(|number| !is_known(number))
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove an abandoned generation");
            }
        }
    }
}

/// A generation that could not be worked with.
pub(super) struct QueueFailure {
    pub(super) generation: PathBuf,
    pub(super) source: QueueError,
}
