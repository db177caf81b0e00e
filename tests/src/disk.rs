//! A small file system of its own, to be filled and freed.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::process::run;
use crate::stage::StageError;
use crate::wait::{Seconds, until};

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

    /// Gives it back.
    pub fn free(&self) -> Result<(), StageError> {
        std::fs::remove_file(self.filler()).map_err(StageError::system("free the disk"))
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}
