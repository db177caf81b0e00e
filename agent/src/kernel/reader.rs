//! The threads that may look into other processes, and hear from nobody.
//!
//! A process that was given capabilities starts them first; then every other thread gives all of them up (see
//! `tickbird_confine`). What needs the rights is handed over as a job: looks at the host, at the files that others have open,
//! the lines of a log, the files of a configuration. A job may hang on a dead mount, so each has a thread of its own; an idle
//! one waits for the next.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tickbird_confine::{CapabilitySet, Confined};
use tokio::sync::oneshot;

/// How long an idle thread waits for the next job.
const IDLE: Duration = Duration::from_secs(10);
/// Most at work at a time; further jobs wait.
const MOST: usize = 32;

/// What they need: to look into processes of others, and with namespaces or end events of connections, those as well.
pub const NEEDED: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::NET_ADMIN);

type Job = Box<dyn FnOnce() + Send>;

/// Hands jobs to them. Cheap to clone; with the last one they end.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// `None`: jobs run with the rights of whoever asks.
    threads: Option<Threads>,
}

#[derive(Debug, Clone)]
struct Threads {
    desk: Arc<Desk>,
    /// One more is wanted.
    more: mpsc::Sender<()>,
}

impl Reader {
    /// Starts them with the rights that this thread has now, as far as they are [`NEEDED`]; gives what they keep.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> std::io::Result<(Self, Confined)> {
        let (desk, (more, wanted), (told, kept)) = (Arc::<Desk>::default(), mpsc::channel(), mpsc::channel());
        let of_keeper = Arc::clone(&desk);
        // New threads have the rights of the one that starts them: this one does nothing else.
        thread::Builder::new().name("reader".into()).spawn(move || {
            // Nobody waits for it any more: the process is ending.
            let _ = told.send(tickbird_confine::all_but(NEEDED));
            for () in wanted {
                Desk::hire(&of_keeper);
            }
            of_keeper.close();
        })?;
        let kept = kept.recv().map_err(std::io::Error::other)?;
        Ok((Self { threads: Some(Threads { desk, more }) }, kept))
    }

    /// Runs a job there, or on a blocking thread of this runtime where none was started. `None` when the runtime is ending.
    ///
    /// # Panics
    /// With the job.
    pub async fn look<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let Some(Threads { desk, more }) = &self.threads else {
            return match tokio::task::spawn_blocking(job).await {
                Ok(seen) => Some(seen),
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Err(_) => None,
            };
        };
        let (told, seen) = oneshot::channel();
        // Ends of processes are waited for by the runtime.
        let runtime = tokio::runtime::Handle::current();
        let job = move || {
            let _context = runtime.enter();
            // Who asked may have given up waiting.
            let _ = told.send(catch_unwind(AssertUnwindSafe(job)));
        };
        if desk.put(Box::new(job)) {
            more.send(()).ok()?;
        }
        match seen.await.ok()? {
            Ok(seen) => Some(seen),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Jobs that wait, and who works.
#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    is_ready: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_closed: bool,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job; whether another thread is wanted for it.
    fn put(&self, job: Job) -> bool {
        let mut state = self.lock();
        state.jobs.push_back(job);
        let is_taken = state.jobs.len() <= state.idle;
        if is_taken {
            self.is_ready.notify_one();
        }
        !is_taken
    }

    fn hire(this: &Arc<Self>) {
        let mut state = this.lock();
        if state.threads >= MOST {
            return;
        }
        let desk = Arc::clone(this);
        match thread::Builder::new().name("reader-look".into()).spawn(move || desk.work()) {
            Ok(_) => state.threads += 1,
            // Whoever works takes the job next; with nobody at work it is given up, and who asked is told.
            Err(_) if state.threads > 0 => (),
            Err(error) => {
                tracing::error!(%error, "no thread to look from");
                state.jobs.clear();
            }
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            if state.is_closed {
                break;
            }
            state.idle += 1;
            let waited = self.is_ready.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            state.idle -= 1;
            if waited.1.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.is_ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_beside_one_another_on_threads_without_a_network() {
        let (reader, kept) = Reader::start().expect("threads");
        let (let_go, held) = mpsc::channel::<()>();
        let stuck = tokio::spawn({
            let reader = reader.clone();
            async move { reader.look(move || held.recv().is_ok()).await }
        });
        let listens = reader.look(|| std::net::TcpListener::bind(("127.0.0.1", 0)).is_ok()).await;
        assert_eq!(listens, Some(kept.system_calls.is_err()), "{kept}");
        assert_eq!(reader.look(tickbird_confine::held).await, Some(kept.capabilities));
        let_go.send(()).expect("the other one waits still");
        assert_eq!(stuck.await.expect("ends"), Some(true));
        let has_runtime = reader.look(|| tokio::runtime::Handle::try_current().is_ok()).await;
        assert_eq!(has_runtime, Some(true));
        let named = reader.look(|| thread::current().name().map(str::to_owned)).await;
        assert_eq!(named.flatten().as_deref(), Some("reader-look"));
    }

    #[tokio::test]
    #[should_panic(expected = "as it came")]
    async fn a_panic_reaches_who_asked() {
        let (reader, _) = Reader::start().expect("threads");
        reader.look(|| panic!("as it came")).await;
    }

    #[tokio::test]
    async fn without_threads_of_its_own_it_is_the_runtimes() {
        assert_eq!(Reader::default().look(|| 7).await, Some(7));
    }
}
