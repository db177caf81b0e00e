//! Everything a collector is, taken out of its directory while it serves, and put back.
//!
//! A backup is a directory: the store as it was at one moment, every other file of the collector's directory (the keys of
//! its authority among them, so it is as secret as they are) and `backup.json`, which names each file with its digest. It
//! is made under another name, verified, and only then has its own: what is called a backup is whole. Restoring works the
//! same way round, and never over something that is there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tickbird_shared::Timestamp;

use crate::collector::Directory;
use crate::store::{self, Contents, StoreError};

/// The file that tells what is in a backup.
const MANIFEST: &str = "backup.json";
/// Form of that file.
const FORMAT: u32 = 1;
/// Largest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 20;
/// Most files beside the store: a collector has a dozen.
const MAX_FILES: usize = 1_000;
/// What belongs to a process that serves, not to the collector.
const OF_A_LIFE: [&str; 4] = ["addresses.json", "ballast", "store.db-wal", "store.db-shm"];
const PIECE: usize = 256 << 10;

/// Why a backup was not made, or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The place is taken.
    #[error("`{0}` is there already")]
    Taken(PathBuf),
    /// An earlier run was interrupted.
    #[error("`{0}` is there: a run that was interrupted, or one that still goes on")]
    Begun(PathBuf),
    /// The place is a file system of its own.
    #[error("`{0}` is a mount point")]
    Mount(PathBuf),
    /// A file or directory cannot be read or written.
    #[error("cannot {doing} `{path}`")]
    File {
        /// `read`, `write`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a backup.
    #[error("`{0}` is no backup: it has no readable backup.json")]
    NoBackup(PathBuf),
    /// Made by a newer collector.
    #[error("the backup has form {found}, this collector knows {FORMAT}")]
    FromTheFuture {
        /// Its form.
        found: u32,
    },
    /// A file is not what it was when the backup was made.
    #[error("the backup is damaged: `{file}` {what}")]
    Damaged {
        /// Its name.
        file: String,
        /// `is missing`, `has changed`.
        what: &'static str,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    /// What an operator can do.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Taken(_) => Some("choose another place, or move it away; nothing is ever overwritten"),
            Self::Begun(_) => Some("remove it when nothing writes it any more: there are keys in it"),
            Self::Mount(_) => Some("name a directory in it"),
            Self::File { .. } => Some("check its rights, and the space on its disk"),
            Self::NoBackup(_) => Some("name a directory that `backup` made"),
            Self::FromTheFuture { .. } => Some("restore it with the collector that made it, or a newer one"),
            Self::Damaged { .. } => Some("use an older backup, or another copy of this one"),
            Self::Store(error) => error.advice(),
        }
    }

    fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing: "read", path: path.into(), source }
    }

    fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing: "write", path: path.into(), source }
    }
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Version of the collector that made it.
    pub version: String,
    /// Schema of its store.
    pub schema: u32,
    /// When the store was copied.
    pub made_at: Timestamp,
    /// Every file beside this one.
    pub files: Vec<Kept>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its name; a backup has no folders.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256, in hexadecimal digits.
    sha256: String,
}

/// What was made or restored.
#[derive(Debug, Clone)]
pub struct Done {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// What its store holds.
    pub contents: Contents,
    /// Names in the collector's directory that are no files, and were left out.
    pub left_out: Vec<String>,
}

impl Done {
    /// Length of all files.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|it| it.bytes).sum()
    }
}

/// Makes a backup of the collector in `from`, which may serve meanwhile, as the new directory `to`. `told` hears the share of
/// the store that is copied.
///
/// # Errors
/// When `to` is there, or something cannot be read or written; then nothing is left behind under its name.
pub fn make(from: &Directory, to: &Path, now: Timestamp, told: impl FnMut(f64)) -> Result<Done, BackupError> {
    let draft = Draft::begin(to)?;
    let store_name = name_of(&from.store());
    let copy = draft.path.join(&store_name);
    // Made before SQLite sees it, so that nobody else may read it at any moment.
    create(&copy, 0o600)?;
    let schema = store::copy(&from.store(), &copy, told)?;
    let contents = store::verify(&copy)?;
    File::open(&copy).and_then(|it| it.sync_all()).map_err(BackupError::writing(&copy))?;
    let (bytes, sha256) = digest(&copy)?;
    let mut files = vec![Kept { name: store_name.clone(), bytes, sha256 }];
    let (names, left_out) = names(from.path())?;
    for name in names.into_iter().filter(|it| *it != store_name && !OF_A_LIFE.contains(&it.as_str())) {
        files.push(carry(&from.path().join(&name), &draft.path.join(&name), name)?);
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { format: FORMAT, version, schema, made_at: now, files };
    let path = draft.path.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
    let mut file = create(&path, 0o600)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(BackupError::writing(&path))?;
    draft.finish()?;
    Ok(Done { manifest, contents, left_out })
}

/// Makes the collector that the backup at `from` was made of, in the new directory `to`.
///
/// # Errors
/// When a file of the backup is not what it was, its store is damaged or of a newer schema, or `to` holds something; then
/// nothing is left behind under its name.
pub fn restore(from: &Path, to: &Directory) -> Result<Done, BackupError> {
    let manifest = read_manifest(from)?;
    let draft = Draft::begin(to.path())?;
    for kept in &manifest.files {
        let damaged = |what| BackupError::Damaged { file: kept.name.clone(), what };
        let path = from.join(&kept.name);
        if !path.is_file() {
            return Err(damaged("is missing"));
        }
        if carry(&path, &draft.path.join(&kept.name), kept.name.clone())? != *kept {
            return Err(damaged("has changed"));
        }
    }
    let store = draft.path.join(name_of(&to.store()));
    if !store.is_file() {
        return Err(BackupError::Damaged { file: name_of(&to.store()), what: "is missing" });
    }
    let contents = store::verify(&store)?;
    draft.finish()?;
    Ok(Done { manifest, contents, left_out: Vec::new() })
}

fn read_manifest(from: &Path) -> Result<Manifest, BackupError> {
    let none = || BackupError::NoBackup(from.into());
    let mut text = String::new();
    let file = File::open(from.join(MANIFEST)).map_err(|_| none())?;
    file.take(MAX_MANIFEST).read_to_string(&mut text).map_err(|_| none())?;
    parse_manifest(&text, from)
}

/// From its text; `from` is the backup that it belongs to.
pub(crate) fn parse_manifest(text: &str, from: &Path) -> Result<Manifest, BackupError> {
    let none = || BackupError::NoBackup(from.into());
    let form: Form = serde_json::from_str(text).map_err(|_| none())?;
    if form.format > FORMAT {
        return Err(BackupError::FromTheFuture { found: form.format });
    }
    let manifest: Manifest = serde_json::from_str(text).map_err(|_| none())?;
    // A name that leads elsewhere was not written by `make`.
    let leads_away = |it: &Kept| Path::new(&it.name).file_name().is_none_or(|name| name != it.name.as_str());
    if manifest.files.len() > MAX_FILES || manifest.files.iter().any(leads_away) {
        return Err(none());
    }
    Ok(manifest)
}

/// The part of a manifest that every form has.
#[derive(Deserialize)]
struct Form {
    format: u32,
}

/// A directory that gets its name when everything is in it.
struct Draft {
    path: PathBuf,
    name: PathBuf,
    is_finished: bool,
}

impl Draft {
    fn begin(name: &Path) -> Result<Self, BackupError> {
        let is_empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut it| it.next().is_none());
        if let Ok(found) = fs::symlink_metadata(name) {
            if !found.is_dir() || !is_empty(name) {
                return Err(BackupError::Taken(name.into()));
            }
            // A directory gets its name by being renamed, which nothing does to a mount.
            if fs::metadata(parent(name)).is_ok_and(|it| it.dev() != found.dev()) {
                return Err(BackupError::Mount(name.into()));
            }
        }
        let path = name.with_added_extension("partial");
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Begun(path.clone()),
            _ => BackupError::File { doing: "write", path: path.clone(), source },
        })?;
        Ok(Self { path, name: name.into(), is_finished: false })
    }

    fn finish(mut self) -> Result<(), BackupError> {
        let sync = |path: &Path| File::open(path).and_then(|it| it.sync_all());
        // An empty directory is replaced; one that was filled meanwhile is not.
        sync(&self.path).and_then(|()| fs::rename(&self.path, &self.name)).map_err(BackupError::writing(&self.name))?;
        self.is_finished = true;
        sync(parent(&self.name)).map_err(BackupError::writing(&self.name))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_finished {
            // It is ours alone, and of no use to anybody.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Files of a directory by name, and what else is in it.
fn names(directory: &Path) -> Result<(Vec<String>, Vec<String>), BackupError> {
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).map_err(BackupError::reading(directory))? {
        let entry = entry.map_err(BackupError::reading(directory))?;
        match entry.file_name().into_string() {
            // A link to a file, as mounted secrets are, is kept as the file.
            Ok(name) if entry.path().is_file() && files.len() < MAX_FILES - 1 => files.push(name),
            Ok(name) => others.push(name),
            Err(name) => others.push(name.to_string_lossy().into_owned()),
        }
    }
    files.sort();
    Ok((files, others))
}

/// Copies a file with its rights and says what it was.
fn carry(from: &Path, to: &Path, name: String) -> Result<Kept, BackupError> {
    let source = File::open(from).map_err(BackupError::reading(from))?;
    let mode = source.metadata().map_err(BackupError::reading(from))?.permissions().mode();
    let mut copy = create(to, mode & 0o666)?;
    let (bytes, sha256) = pump(source, from, &mut copy, to)?;
    copy.sync_all().map_err(BackupError::writing(to))?;
    Ok(Kept { name, bytes, sha256 })
}

fn digest(path: &Path) -> Result<(u64, String), BackupError> {
    pump(File::open(path).map_err(BackupError::reading(path))?, path, io::sink(), path)
}

/// Reads to the end and writes what it reads: how much it was, and its digest.
fn pump(mut source: File, from: &Path, mut copy: impl Write, to: &Path) -> Result<(u64, String), BackupError> {
    let (mut bytes, mut hash, mut piece) = (0, Sha256::new(), vec![0; PIECE]);
    loop {
        let read = source.read(&mut piece).map_err(BackupError::reading(from))?;
        if read == 0 {
            return Ok((bytes, digits(&hash.finalize())));
        }
        hash.update(&piece[..read]);
        copy.write_all(&piece[..read]).map_err(BackupError::writing(to))?;
        bytes += read as u64;
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn create(path: &Path, mode: u32) -> Result<File, BackupError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    made.map_err(BackupError::writing(path))
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |it| it.to_string_lossy().into_owned())
}
