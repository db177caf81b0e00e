//! Small file systems of their own: one to be filled and freed, one to be frozen.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::process::{installed, run};
use crate::stage::StageError;
use crate::wait::{Seconds, until};

/// Between two looks at what became free.
const OFTEN: Duration = Duration::from_millis(1);

/// A disk that stays full as long as this is there.
#[derive(Debug)]
pub struct KeptFull {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for KeptFull {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it was told by it.
            let _ = thread.join();
        }
    }
}

/// A tmpfs in the scenario's mount namespace; it goes with that.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one of so many bytes over `path`, an empty directory.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self, StageError> {
        let size = format!("size={bytes},mode=0755");
        run(Command::new("/usr/bin/mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Bytes that may be written to it.
    pub fn free_bytes(&self) -> Result<u64, StageError> {
        let found = statvfs(&self.path).map_err(|error| StageError::system("ask for free space")(error.into()))?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// Takes all of it but so many bytes; again and again, what became free meanwhile too.
    pub fn fill(&self, leaving: u64) -> Result<(), StageError> {
        let failed = || StageError::system(format!("fill {}", self.path.display()));
        let path = self.filler();
        let file = std::fs::File::options().create(true).append(true).open(path).map_err(failed())?;
        // Whoever writes to it meanwhile takes some of what was free.
        until(format!("{} is full", self.path.display()), 10.s(), || {
            let has = file.metadata().map_err(|error| error.to_string())?.len();
            match self.free_bytes().map_err(|error| error.to_string())?.saturating_sub(leaving) {
                0 => Ok(()),
                more => fallocate(&file, FallocateFlags::empty(), has, more).map_err(|error| error.to_string()),
            }
        })
    }

    /// Fills it again and again, whatever becomes free, until this is dropped.
    pub fn kept_full(&self) -> KeptFull {
        let is_over = Arc::new(AtomicBool::new(false));
        let (disk, over) = (Self { path: self.path.clone() }, is_over.clone());
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                // Somebody else may have been quicker.
                let _ = disk.fill(0);
                thread::sleep(OFTEN);
            }
        });
        KeptFull { is_over, thread: Some(thread) }
    }

    /// Gives it back.
    pub fn free(&self) -> Result<(), StageError> {
        std::fs::remove_file(self.filler()).map_err(StageError::system("free the disk"))
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

const FSFREEZE: &str = "/usr/sbin/fsfreeze";

/// An ext4 in a file, in the scenario's mount namespace. Frozen, it makes whoever writes to it wait, as a disk does that hangs.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
}

/// While it is there the volume is frozen. It ends with the scenario, however that ends: nobody can be killed who waits for a frozen
/// disk.
#[derive(Debug)]
pub struct Frozen<'v>(&'v Volume);

impl Volume {
    /// Makes one of so many bytes in the file `image`, and mounts it over `path`, an empty directory.
    pub fn mount(path: &Path, image: &Path, bytes: u64) -> Result<Self, StageError> {
        const MKFS: &str = "/usr/sbin/mkfs.ext4";
        installed(MKFS, "e2fsprogs")?;
        installed(FSFREEZE, "util-linux")?;
        let made = std::fs::File::create(image).and_then(|file| file.set_len(bytes));
        made.map_err(StageError::system(format!("make {}", image.display())))?;
        run(Command::new(MKFS).args(["-q", "-F"]).arg(image))?;
        run(Command::new("/usr/bin/mount").args(["-o", "loop"]).arg(image).arg(path))?;
        Ok(Self { path: path.to_owned() })
    }

    /// From now on nothing is written to it.
    pub fn freeze(&self) -> Result<Frozen<'_>, StageError> {
        run(Command::new(FSFREEZE).arg("--freeze").arg(&self.path))?;
        Ok(Frozen(self))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = run(Command::new(FSFREEZE).arg("--unfreeze").arg(&self.0.path));
        if let Err(error) = thawed {
            println!("{error}: what waits for it cannot end");
        }
    }
}
