//! A stream whose peer must read: what is written has to be gone within a time, or the connection ends.
//!
//! The time runs from the first write that finds no room until everything is flushed. A peer that reads a byte now and then
//! gains nothing by it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::stir::Stir;

/// The stream with its time.
pub(super) struct Patience<S> {
    stream: S,
    limit: Duration,
    waits: Option<Pin<Box<Sleep>>>,
    /// Read before the stream: what somebody took out of it and did not need.
    first: Bytes,
    stir: Arc<Stir>,
}

impl<S> Patience<S> {
    /// `stir` is told when the time was over, and of all that is read and written.
    pub(super) const fn new(stream: S, limit: Duration, stir: Arc<Stir>) -> Self {
        Self { stream, limit, waits: None, first: Bytes::new(), stir }
    }

    /// Is read again before everything else.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.first = bytes;
    }

    /// An error when the peer was waited for long enough.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let limit = self.limit;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(waits.as_mut().poll(cx));
        self.stir.gave_up();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncBufRead + Unpin> Patience<S> {
    /// Waits until there is something to read; false when there never will be.
    pub(super) async fn heard(&mut self) -> io::Result<bool> {
        if !self.first.is_empty() {
            return Ok(true);
        }
        std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_fill_buf(cx).map_ok(|it| !it.is_empty())).await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.stir.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stir.said();
        match Pin::new(&mut self.stream).poll_write(cx, buf) {
            Poll::Pending => self.wait(cx),
            ready => ready,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stir.said();
        match Pin::new(&mut self.stream).poll_write_vectored(cx, bufs) {
            Poll::Pending => self.wait(cx),
            ready => ready,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.wait(cx),
            ready => {
                self.waits = None;
                self.stir.flushed();
                ready
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Pending => self.wait(cx),
            ready => ready,
        }
    }
}

/// The body of an answer over HTTP/2, where a peer can read and yet give no window: `overdue` is told when it has not been
/// taken within `limit`.
pub(super) fn watched(body: Body, limit: Duration, overdue: Arc<Stir>) -> Body {
    let (taken, is_taken) = oneshot::channel::<()>();
    tokio::spawn(async move {
        if tokio::time::timeout(limit, is_taken).await.is_err() {
            overdue.is_overdue();
        }
    });
    holding(body, taken)
}

/// The same body, with something that is dropped when it is over.
pub(super) fn holding(body: Body, it: impl Send + Unpin + 'static) -> Body {
    Body::new(Holding { body, _it: it })
}

struct Holding<T> {
    body: Body,
    _it: T,
}

impl<T: Unpin> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up_and_one_that_reads_is_not() {
        let limit = Duration::from_secs(30);
        let stir = Arc::new(Stir::default());
        let (near, mut far) = duplex(64);
        let mut patient = Patience::new(near, limit, Arc::clone(&stir));
        let began = tokio::time::Instant::now();
        let error = patient.write_all(&[0; 1_000]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, limit));
        assert!(stir.is_unread());

        let (near, mut reader) = duplex(64);
        let mut patient = Patience::new(near, limit, Arc::default());
        let reads = tokio::spawn(async move {
            let mut taken = 0;
            // Slow, and in time each time: every second a request's worth.
            while taken < 640 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                taken += reader.read(&mut [0; 64]).await.expect("is there");
            }
        });
        for _ in 0..10 {
            patient.write_all(&[0; 64]).await.expect("has room in time");
            patient.flush().await.expect("is taken");
        }
        reads.await.expect("reads");
        // The first peer is still there.
        far.read_exact(&mut [0; 64]).await.expect("what was written before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_not_taken_is_told_of_and_one_that_is_taken_is_not() {
        let limit = Duration::from_secs(30);
        let overdue = Arc::new(Stir::default());
        let taken = watched(Body::from("x"), limit, Arc::clone(&overdue));
        drop(taken);
        let told = tokio::time::timeout(2 * limit, overdue.overdue()).await;
        assert!(told.is_err(), "it was taken");
        let _kept = watched(Body::from("x"), limit, Arc::clone(&overdue));
        let told = tokio::time::timeout(2 * limit, overdue.overdue()).await;
        assert!(told.is_ok(), "it was not");
    }
}
