//! What both listeners of the agent share: callers are few, their time is short, and the owner of the state answers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Report;

/// A caller that waits for a report.
pub type Ask = oneshot::Sender<Report>;

/// Most callers served at a time; more wait to be accepted.
const MAX_CALLERS: usize = 8;
/// Longest a caller waits for the report, and the longest a connection lives.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What callers come in by.
pub(super) trait Accept {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is known of who opened it.
    type Caller: Copy + Send + 'static;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Caller)>> + Send;
}

/// Answers callers until `asks` closes.
pub(super) async fn serve<L, F, A>(listener: L, asks: mpsc::Sender<Ask>, answer: F)
where
    L: Accept,
    F: Fn(Request<Incoming>, L::Caller, mpsc::Sender<Ask>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send,
{
    let slots = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.next() => accepted,
            () = asks.closed() => return,
        };
        let (stream, caller) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "local listener cannot accept");
                // Out of descriptors, most likely: trying again at once would only spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (asks, answer) = (asks.clone(), answer.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request, caller, asks.clone());
                async { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(PATIENCE, connection).await;
            drop(slot);
        });
    }
}

/// The owner's report; none when it ends.
pub(super) async fn report(asks: &mpsc::Sender<Ask>) -> Option<Report> {
    let (ask, told) = oneshot::channel();
    asks.send(ask).await.ok()?;
    told.await.ok()
}

pub(super) fn response(status: StatusCode, content_type: Option<&'static str>, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
