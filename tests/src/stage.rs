//! Where one scenario lives: a directory, and what can go wrong in it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Why the stage could not do its part. The scenario fails with it; its text is all a person needs.
#[derive(thiserror::Error)]
pub enum StageError {
    /// A program or a library of the distribution is not installed.
    #[error("{what} is not installed: run `apt-get install {package}`")]
    Missing {
        /// The file that was looked for.
        what: String,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// Our own binary is not built.
    #[error("{} is not built: run `cargo build --release`, or set TICKBIRD_BIN_DIR", path.display())]
    NotBuilt {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A program ended with a failure, or answered with one.
    #[error("{what} failed: {said}")]
    Failed {
        /// What was run or asked.
        what: String,
        /// Its last words.
        said: String,
    },
    /// A state did not come in time.
    #[error("not within {within:?}: {what}; last seen: {last}")]
    NotInTime {
        /// The state that was waited for.
        what: String,
        /// For how long.
        within: Duration,
        /// What was there instead.
        last: String,
    },
    /// Something answered in a form that was not agreed.
    #[error("{what} is not as agreed: {found}")]
    Malformed {
        /// What was read.
        what: String,
        /// What it held.
        found: String,
    },
}

/// The same text as `Display`: a test that returns an error is shown by `Debug`.
impl std::fmt::Debug for StageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl StageError {
    /// For `map_err`: the operating system refused `what`.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// The directory of one scenario and the binaries under test.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    binaries: PathBuf,
    started: AtomicU32,
}

impl Stage {
    /// A stage in `directory`, which exists and is made readable to all: PostgreSQL runs as another user below it.
    ///
    /// The binaries are those in `TICKBIRD_BIN_DIR`, else in `target/release` of this workspace.
    pub fn at(directory: &Path) -> Result<Self, StageError> {
        let binaries = std::env::var_os("TICKBIRD_BIN_DIR").map_or_else(release_directory, PathBuf::from);
        Self::with_binaries(directory, binaries)
    }

    /// The same, with the binaries of this folder.
    pub fn with_binaries(directory: &Path, binaries: PathBuf) -> Result<Self, StageError> {
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, readable)
            .map_err(StageError::system(format!("open {}", directory.display())))?;
        Ok(Self { directory: directory.to_owned(), binaries, started: AtomicU32::new(0) })
    }

    /// A new directory for one actor: `02-postgres`, in the order of appearance.
    pub fn room(&self, actor: &str) -> Result<PathBuf, StageError> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let room = self.directory.join(format!("{number:02}-{actor}"));
        std::fs::create_dir(&room).map_err(StageError::system(format!("make {}", room.display())))?;
        Ok(room)
    }

    /// The scenario's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Path of one of the shipped binaries: `tickbird-agent`, `tickbird-collector`.
    pub fn binary(&self, name: &str) -> Result<PathBuf, StageError> {
        let path = self.binaries.join(name);
        if path.is_file() { Ok(path) } else { Err(StageError::NotBuilt { path }) }
    }
}

fn release_directory() -> PathBuf {
    target_directory().join("release")
}

/// Where things are built.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The root of this workspace's sources, as it was when this was compiled.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in a folder of the workspace")
}
