//! A wall clock that a scenario sets while programs run: libfaketime between the shipped binary and the C library.
//!
//! A time namespace leaves `CLOCK_REALTIME` alone, and setting the host's own would be everybody's. What the binaries ask
//! for the time of day goes through the C library; their monotonic clocks stay the kernel's, as when a host is set.

use std::path::{Path, PathBuf};

use crate::process::installed;
use crate::stage::StageError;

/// A clock that is right until it is set.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A new one; the program that knows [`Self::environment`] goes by it. `directory` is the program's own: nothing else is in
    /// reach of it.
    ///
    /// # Errors
    /// When libfaketime is not installed.
    pub fn right(directory: &Path) -> Result<Self, StageError> {
        installed("/usr/share/doc/libfaketime", "libfaketime")?;
        let folders = std::fs::read_dir("/usr/lib").map_err(StageError::system("read /usr/lib"))?;
        let places = folders.flatten().map(|it| it.path().join("faketime/libfaketimeMT.so.1"));
        let missing = || StageError::Missing { what: "libfaketimeMT.so.1".into(), package: "libfaketime" };
        let library = places.into_iter().find(|it| it.exists()).ok_or_else(missing)?;
        let it = Self { library, file: directory.join("clock") };
        it.is_ahead_by(0)?;
        Ok(it)
    }

    /// Sets it to so many seconds ahead of the right time, or behind it.
    pub fn is_ahead_by(&self, seconds: i64) -> Result<(), StageError> {
        // Replaced as a whole: it is read at each question for the time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).map_err(StageError::system("write a clock's offset"))?;
        std::fs::rename(&new, &self.file).map_err(StageError::system("set a clock"))
    }

    /// What a program has to know to go by it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |it: &PathBuf| it.display().to_string();
        let is_set = |name| (name, "1".to_owned());
        vec![
            ("LD_PRELOAD", path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.file)),
            is_set("FAKETIME_NO_CACHE"),
            is_set("FAKETIME_DONT_FAKE_MONOTONIC"),
            // Times of files are those that the disk has; and what it shares between processes is not ours to share.
            is_set("NO_FAKE_STAT"),
            is_set("FAKETIME_DISABLE_SHM"),
        ]
    }
}
