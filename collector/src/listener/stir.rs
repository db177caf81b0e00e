//! What goes on on a connection, as its stream and its service see it: whether anything is under way, and what was waited for
//! in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use axum::body::Body;
use tokio::sync::Notify;

use super::patience::holding;

/// One connection's.
#[derive(Debug, Default)]
pub(super) struct Stir {
    /// Requests whose answer is not over.
    open: AtomicUsize,
    /// Something came after the last answer was made: a request, or a part of one.
    heard: AtomicBool,
    /// Something was written, and not flushed.
    unflushed: AtomicBool,
    /// Requests so far.
    requests: AtomicU64,
    unread: AtomicBool,
    overdue: Notify,
}

/// One request, until its answer is over.
#[derive(Debug)]
pub(super) struct Asked(Arc<Stir>);

impl Stir {
    /// Something is there to be read, and nothing of it was.
    pub(super) fn wake(&self) {
        self.heard();
    }

    pub(super) fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    pub(super) fn said(&self) {
        self.unflushed.store(true, Ordering::Relaxed);
    }

    pub(super) fn flushed(&self) {
        self.unflushed.store(false, Ordering::Relaxed);
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Asked {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Asked(Arc::clone(self))
    }

    /// When nothing is under way, how many requests there were: the same number twice means that nothing was said between.
    pub(super) fn lull(&self) -> Option<u64> {
        let is_quiet = self.open.load(Ordering::Relaxed) == 0
            && !self.heard.load(Ordering::Relaxed)
            && !self.unflushed.load(Ordering::Relaxed);
        is_quiet.then(|| self.requests.load(Ordering::Relaxed))
    }

    /// The peer did not read what was written in time.
    pub(super) fn gave_up(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// The body of an answer was not taken in time.
    pub(super) fn is_overdue(&self) {
        self.overdue.notify_one();
    }

    /// Waits for [`Stir::is_overdue`].
    pub(super) async fn overdue(&self) {
        self.overdue.notified().await;
    }
}

impl Asked {
    /// What is read from here on belongs to another request.
    pub(super) fn answered(&self) {
        self.0.heard.store(false, Ordering::Relaxed);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body whose request is not over before it is.
pub(super) fn held(body: Body, request: Asked) -> Body {
    holding(body, request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_quiet_that_is_read_answered_or_written() {
        let stir = Arc::new(Stir::default());
        stir.wake();
        assert_eq!(stir.lull(), None, "something came");
        let first = stir.begin();
        first.answered();
        assert_eq!(stir.lull(), None, "the answer is not over");
        stir.said();
        drop(first);
        assert_eq!(stir.lull(), None, "it is not flushed");
        stir.flushed();
        assert_eq!(stir.lull(), Some(1));
        stir.heard();
        stir.flushed();
        assert_eq!(stir.lull(), None, "a part of the next one came");
        let second = stir.begin();
        second.answered();
        drop(second);
        assert_eq!(stir.lull(), Some(2), "something was said since");
    }
}
