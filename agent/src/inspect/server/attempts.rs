//! Several addresses of one server: which of them gives a session.

use std::time::Duration;

use tokio::time::{self, Instant};

use super::ConnectError;

/// Tries each of these addresses with its share of `patience`, so that a first one that swallows everything leaves the
/// others theirs. A server that answers is not asked at another address: it would say the same, and each try takes a slot.
pub(in crate::inspect) async fn first<A: Copy, T, F>(
    server: &str,
    tries: &[A],
    patience: Duration,
    open: impl Fn(A) -> F,
) -> Result<T, ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let started = Instant::now();
    let mut last = None;
    for (index, address) in tries.iter().enumerate() {
        let left = patience.saturating_sub(started.elapsed());
        let share = left / u32::try_from(tries.len() - index).unwrap_or(u32::MAX);
        let begun = Instant::now();
        let error = match time::timeout(share, open(*address)).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => error,
            Err(_) => ConnectError::Timeout { server: server.to_owned(), seconds: begun.elapsed().as_secs_f64() },
        };
        if !matches!(error, ConnectError::Unreachable { .. } | ConnectError::Timeout { .. }) {
            return Err(error);
        }
        last = Some(error);
    }
    Err(last.unwrap_or_else(|| ConnectError::Resolve { server: server.to_owned(), said: "no address".into() }))
}
