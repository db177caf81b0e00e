//! `cargo xtask fuzz`: every parser of foreign bytes under libFuzzer, each for so many minutes.
//!
//! Coverage comes from LLVM's own pass, which the stable compiler has too; libFuzzer is built by its crate and needs a
//! C++ compiler (Debian: `build-essential`), so there is no nightly to install.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tickbird_tests::StageError;
use tickbird_tests::stage::workspace;

use crate::steps::{TaskError, cargo, target_directory};

mod summary;

use summary::Row;

/// Edges with counters and compared values, which libFuzzer is guided by.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What an input may be and cost: bytes, seconds, and mebibytes of the whole process. The memory that one input may take
/// is bounded within, in `tests/fuzz/src/main.rs`.
const BOUNDS: [&str; 3] = ["-max_len=16384", "-timeout=5", "-rss_limit_mb=512"];

/// Most bytes of a kept corpus.
const MAX_KEPT: u64 = 200 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Names of targets, as in `tests/fuzz/corpus`; all of them without any.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Minutes for each target.
    #[arg(long, default_value_t = 10, value_name = "N")]
    minutes: u64,
    /// Targets that run at once.
    #[arg(long, default_value_t = 2, value_name = "N")]
    at_once: usize,
    /// Replace the kept corpora by the smallest inputs that reach what was reached.
    #[arg(long)]
    keep: bool,
}

/// Where things are.
struct Places {
    program: PathBuf,
    /// `tests/fuzz`.
    kept: PathBuf,
    /// What was found beyond that, and the logs.
    work: PathBuf,
}

pub(crate) fn fuzz(arguments: &Arguments) -> Result<(), TaskError> {
    let places = build()?;
    let all = folders(&places.kept.join("corpus"))?;
    if let Some(unknown) = arguments.targets.iter().find(|it| !all.contains(it)) {
        return Err(TaskError::Steps(vec![format!("no target `{unknown}`; there are {}", all.join(", "))]));
    }
    let chosen = if arguments.targets.is_empty() { all } else { arguments.targets.clone() };
    println!("{} targets, {} minutes each, {} at once", chosen.len(), arguments.minutes, arguments.at_once);
    let left = Mutex::new(VecDeque::from(chosen));
    let done = Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.at_once.max(1) {
            scope.spawn(|| {
                let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(name) = next() {
                    println!("{name} …");
                    let outcome = places.run(&name, arguments);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(row) => {
                            println!("{row}");
                            done.0.push(row);
                        }
                        Err(error) => done.1.push(format!("{name}: {error}")),
                    }
                }
            });
        }
    });
    let (rows, mut failed) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let summary = workspace().join("tests/bench/runs/fuzz.md");
    summary::write(&summary, &rows, arguments.minutes)?;
    println!("\n{}\nThe summary stands in {}", summary::table(&rows), summary.display());
    failed.extend(rows.iter().filter(|it| !it.findings.is_empty()).map(|it| {
        format!("{}: {} (mend it and keep the input, which the tests replay)", it.name, it.findings.join(", "))
    }));
    if failed.is_empty() { Ok(()) } else { Err(TaskError::Steps(failed)) }
}

/// Builds the one program that has all targets, with coverage in everything that it is made of.
fn build() -> Result<Places, TaskError> {
    let kept = workspace().join("tests/fuzz");
    let work = target_directory()?.join("fuzzing");
    let version = tickbird_tests::process::run(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|it| it.strip_prefix("host: ")).unwrap_or_default();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (manifest, target) = (text(&kept.join("Cargo.toml")), text(&work));
    // With a target named, scripts and macros of the build are left without coverage.
    let command = ["build", "--release", "--locked", "--target", host, "--target-dir", &target, "--manifest-path"];
    cargo(&[&command[..], &[&manifest]].concat(), &[("RUSTFLAGS", COVERAGE)])?;
    let program = work.join(host).join("release/tickbird-fuzz");
    Ok(Places { program, kept, work })
}

impl Places {
    /// Runs one target to its time's end or to its first finding.
    fn run(&self, name: &str, arguments: &Arguments) -> Result<Row, TaskError> {
        let (corpus, found) = (self.kept.join("corpus").join(name), self.kept.join("found").join(name));
        let (grown, log) = (self.work.join("grown").join(name), self.work.join(format!("{name}.log")));
        for folder in [&grown, &found] {
            fs::create_dir_all(folder).map_err(StageError::system(format!("make {}", folder.display())))?;
        }
        let before = names(&found)?;
        let output = File::create(&log).map_err(StageError::system(format!("make {}", log.display())))?;
        let status = self
            .program(name)
            .args(BOUNDS)
            .arg(format!("-max_total_time={}", 60 * arguments.minutes))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args(["-print_final_stats=1", "-verbosity=1"])
            .args([&grown, &corpus, &found])
            .stdout(Stdio::null())
            .stderr(output)
            .status()
            .map_err(StageError::system("run libFuzzer"))?;
        let text = fs::read(&log).map_err(StageError::system(format!("read {}", log.display())))?;
        let mut findings = names(&found)?;
        findings.retain(|it| !before.contains(it));
        if !status.success() && findings.is_empty() {
            findings.push(format!("ended with {status}, see {}", log.display()));
        }
        let is_kept = arguments.keep && findings.is_empty();
        let kept = if is_kept { self.minimise(name, &corpus, &grown)? } else { names(&corpus)?.len() };
        // A folder stays only for what is in it.
        let _ = fs::remove_dir(&found);
        Ok(Row::read(name, &String::from_utf8_lossy(&text), arguments.minutes, kept, findings))
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("TICKBIRD_FUZZ", name).current_dir(&self.work);
        command
    }

    /// The smallest inputs that together reach every edge that any of them reached, the small ones first.
    fn minimise(&self, name: &str, corpus: &Path, grown: &Path) -> Result<usize, TaskError> {
        let fresh = tempfile::tempdir_in(&self.work).map_err(StageError::system("make a folder"))?;
        let mut command = self.program(name);
        command.args(BOUNDS).args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"]);
        command.arg(fresh.path()).args([corpus, grown]).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().map_err(StageError::system("run libFuzzer"))?;
        let files = names(fresh.path())?;
        if !status.success() || files.is_empty() {
            return Err(TaskError::Steps(vec![format!("minimising the corpus of {name}")]));
        }
        let size = |it: &String| fs::metadata(fresh.path().join(it)).map_or(u64::MAX, |it| it.len());
        let mut sized: Vec<_> = files.iter().map(|it| (size(it), it)).collect();
        sized.sort();
        for old in names(corpus)? {
            fs::remove_file(corpus.join(old)).map_err(StageError::system("replace the corpus"))?;
        }
        let (mut bytes, mut kept) = (0, 0);
        for (size, file) in sized {
            bytes += size;
            if bytes > MAX_KEPT {
                break;
            }
            fs::copy(fresh.path().join(file), corpus.join(file)).map_err(StageError::system("keep the corpus"))?;
            kept += 1;
        }
        Ok(kept)
    }
}

/// Names of the files in a folder.
fn names(folder: &Path) -> Result<Vec<String>, TaskError> {
    let entries = fs::read_dir(folder).map_err(StageError::system(format!("read {}", folder.display())))?;
    let mut names: Vec<_> = entries.flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn folders(folder: &Path) -> Result<Vec<String>, TaskError> {
    let mut all = names(folder)?;
    all.retain(|it| folder.join(it).is_dir());
    Ok(all)
}
