//! Queries and cursors under any bytes.

use axum::http::Uri;
use axum::response::IntoResponse;
use tickbird_shared::{Severity, Status};

use super::page::{self, Page};
use super::query::Query;

/// A query of every list, and a cursor.
pub(crate) fn queries(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let list = page::digest("findings", "default", &[Some("pool.leak"), None]);
    assert_eq!(page::open(&page::seal(text, &list), &list).as_deref(), Some(text), "a cursor comes back");
    if let Some(key) = page::open(text, &list) {
        assert_eq!(page::seal(&key, &list), text, "one key has one cursor");
    }
    let Ok(uri) = format!("/api/v1/findings?{text}").parse::<Uri>() else { return };
    let Ok(mut query) = Query::parse(&uri) else { return };
    let read = |query: &mut Query| {
        let check = query.text("check")?;
        let (status, severity) = (query.value::<Status>("status")?, query.value::<Severity>("severity")?);
        let days = query.value::<u32>("days")?;
        let page = Page::read(query, "findings", "default", &[check.as_deref()])?;
        assert!((2..=501).contains(&page.ask()));
        let _ = page.after_number();
        Ok((check, status, severity, days))
    };
    let outcome = read(&mut query).and_then(|it| query.finish().map(|()| it));
    match outcome {
        Ok((check, ..)) => assert!(check.is_none_or(|it| (1..=512).contains(&it.len()))),
        Err(problem) => {
            let problem: crate::problem::Problem = problem;
            assert!(problem.into_response().status().is_client_error());
        }
    }
}
