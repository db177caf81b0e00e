//! Who keeps the agent's rights: the threads of the reader, which hear from nobody. All others give theirs up first.

use std::fmt;
use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tickbird_confine::{Confined, Paths};

use crate::config::Config;
use crate::kernel::own;
use crate::kernel::reader::Reader;

/// What each side has after it.
#[derive(Debug)]
pub struct Separation {
    /// Looks into other processes.
    pub reader: Reader,
    /// What its threads keep.
    kept: Confined,
    /// What everybody else has.
    rest: Confined,
}

impl Separation {
    /// Starts the reader with what this thread may do, and takes it from this thread and all that it starts from now on.
    /// To be called while there is no other thread, and before anything is heard.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn begin(config: &Config) -> io::Result<Self> {
        // It stays open: `/proc` is out of reach then.
        let _ = own::memory();
        let had = tickbird_confine::held();
        let (reader, kept) = Reader::start()?;
        let paths = within_reach(config);
        let kept_by_all = tickbird_confine::in_the_directory_of_another(&config.state_dir);
        let rest = tickbird_confine::everything_but(kept_by_all, &paths);
        if !had.is_empty() {
            // A thread without capabilities could be traced by whoever has the same user, and the others share its memory.
            // It ends core dumps, too, in which secrets would be.
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        }
        Ok(Self { reader, kept, rest })
    }

    /// Whether this kernel took all that was given up.
    pub fn is_whole(&self) -> bool {
        self.kept.is_whole() && self.rest.is_whole()
    }
}

/// `the reader has CAP_SYS_PTRACE, …; whoever hears from a network: no capability, …`.
impl fmt::Display for Separation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the reader of processes and files: {}; whoever hears from a network: {}", self.kept, self.rest)
    }
}

/// The files that are read or written once the configuration is loaded. What it names besides is read with it, by the reader.
fn within_reach(config: &Config) -> Paths {
    let mut paths = Paths::of_the_system();
    // It may not be there yet; that it cannot be made is told by who needs it.
    let _ = crate::durable_file::create_private_directory(&config.state_dir);
    paths.write.extend([config.state_dir.clone(), config.buffer.directory().to_owned()]);
    if let Some(files) = &config.identity {
        for file in [&files.certificate, &files.key, &files.authority] {
            paths.and_beside(file);
        }
    }
    paths
}
