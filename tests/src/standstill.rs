//! A process stopped in the middle of what it does, to be looked at: which system call each thread is in.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::stage::StageError;
use crate::wait::until;

/// Of the x86-64 and AArch64 kernels: pwrite64, fsync, fdatasync, sync_file_range.
#[cfg(target_arch = "x86_64")]
const WRITING: [u64; 4] = [18, 74, 75, 277];
#[cfg(target_arch = "aarch64")]
const WRITING: [u64; 4] = [68, 82, 83, 84];

/// Files that a stopped process (`SIGSTOP`) is just writing or syncing. A call that was begun has ended when its thread
/// has stopped, and the program does not know it yet.
pub fn files_written_by(process: u32) -> Result<Vec<PathBuf>, StageError> {
    until(format!("process {process} stands still"), Duration::from_secs(10), || {
        let mut files = Vec::new();
        let tasks = fs::read_dir(format!("/proc/{process}/task")).map_err(|error| error.to_string())?;
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("syscall")).map_err(|error| error.to_string())?;
            if text.starts_with("running") {
                return Err(format!("{} runs", task.path().display()));
            }
            let mut words = text.split_whitespace();
            let call = words.next().and_then(|word| word.parse().ok());
            let file = words.next().and_then(|word| u32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
            if let (Some(call), Some(file)) = (call, file)
                && WRITING.contains(&call)
            {
                files.extend(fs::read_link(format!("/proc/{process}/fd/{file}")));
            }
        }
        Ok(files)
    })
}
