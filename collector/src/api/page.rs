//! Lists cut into pages by key, not by count: what is added while somebody reads moves nothing and hides nothing.
//!
//! A cursor is opaque: base 64 of a version, the key of the last item, and eight bytes of a hash over both, the list, the
//! tenant and the filters. So one that was cut, changed, or taken to another list is recognised and refused.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::query::Query;
use crate::problem::Problem;

/// Items of a page when nobody says.
const DEFAULT_LIMIT: u32 = 50;
/// Most items of a page.
const MAX_LIMIT: u32 = 500;
const VERSION: u8 = 1;
const CHECK: usize = 8;

/// Which page of which list is asked for.
#[derive(Debug, Clone)]
pub(super) struct Page {
    limit: u32,
    after: Option<String>,
    /// Hash over the list, the tenant and the filters.
    list: [u8; 32],
}

impl Page {
    /// Reads `limit` and `cursor`. `filters` is everything that decides what is in the list, in a fixed order.
    pub(super) fn read(query: &mut Query, list: &str, tenant: &str, filters: &[Option<&str>]) -> Result<Self, Problem> {
        let limit = query.value("limit")?.unwrap_or(DEFAULT_LIMIT);
        if limit == 0 || limit > MAX_LIMIT {
            let detail = format!("`limit` is 1 to {MAX_LIMIT}");
            return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_parameter", detail).with("parameter", "limit"));
        }
        let list = digest(list, tenant, filters);
        let after = match query.text("cursor")? {
            Some(cursor) => Some(open(&cursor, &list).ok_or_else(bad_cursor)?),
            None => None,
        };
        Ok(Self { limit, after, list })
    }

    /// The key after which this page begins; none for the first page.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// The same as a number, where keys are numbers.
    pub(super) fn after_number(&self) -> Result<Option<i64>, Problem> {
        self.after().map(|key| key.parse().map_err(|_| bad_cursor())).transpose()
    }

    /// How many rows to ask for: one more than is shown, to know whether there is another page.
    pub(super) const fn ask(&self) -> u32 {
        self.limit + 1
    }

    /// The document of a page made of the rows that were found. `key` names a row, `item` shows it.
    pub(super) fn document<'a, R, T: Serialize>(
        &self,
        rows: &'a [R],
        key: impl Fn(&'a R) -> String,
        item: impl Fn(&'a R) -> T,
    ) -> Document {
        let shown = rows.get(..self.limit as usize).unwrap_or(rows);
        let more = rows.len() > shown.len();
        let next = shown.last().filter(|_| more).map(|last| seal(&key(last), &self.list));
        #[derive(Serialize)]
        struct List<T> {
            items: Vec<T>,
            next: Option<String>,
        }
        let list = List { items: shown.iter().map(item).collect(), next };
        Document(serde_json::to_vec(&list).expect("rows of the store serialise"))
    }
}

/// A rendered JSON document.
#[derive(Debug)]
pub(super) struct Document(Vec<u8>);

impl IntoResponse for Document {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], Body::from(self.0)).into_response()
    }
}

fn bad_cursor() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_cursor", "the cursor is not one that this list gave, with these filters")
        .advise("start again without a cursor, and pass on `next` unchanged with the same filters")
}

pub(super) fn digest(list: &str, tenant: &str, filters: &[Option<&str>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [Some(list), Some(tenant)].iter().chain(filters) {
        // The length keeps neighbours apart, and one that is not there from an empty one.
        hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
        hash.update(part.unwrap_or_default());
    }
    hash.finalize().into()
}

pub(super) fn seal(key: &str, list: &[u8; 32]) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend(check(key.as_bytes(), list));
    bytes.extend(key.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn open(cursor: &str, list: &[u8; 32]) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (version, rest) = bytes.split_first()?;
    let (sum, key) = rest.split_at_checked(CHECK)?;
    if *version != VERSION || sum != check(key, list) {
        return None;
    }
    String::from_utf8(key.to_vec()).ok()
}

fn check(key: &[u8], list: &[u8; 32]) -> [u8; CHECK] {
    let mut hash = Sha256::new();
    hash.update([VERSION]);
    hash.update(list);
    hash.update(key);
    let mut sum = [0; CHECK];
    sum.copy_from_slice(&hash.finalize()[..CHECK]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cursor_belongs_to_one_list_of_one_tenant_with_its_filters() {
        let of = |list, tenant, filter| digest(list, tenant, &[filter, None]);
        let mine = of("incidents", "default", Some("firing"));
        let cursor = seal("01J", &mine);
        assert_eq!(open(&cursor, &mine).as_deref(), Some("01J"));
        let others = [
            of("findings", "default", Some("firing")),
            of("incidents", "other", Some("firing")),
            of("incidents", "default", None),
            of("incidents", "default", Some("")),
        ];
        assert!(others.iter().all(|other| open(&cursor, other).is_none()));
    }

    proptest! {
        #[test]
        fn a_changed_cursor_is_refused(key in "[0-9A-Z]{1,26}", at in any::<proptest::sample::Index>(), to in "[A-Za-z0-9_-]") {
            let list = digest("incidents", "default", &[]);
            let cursor = seal(&key, &list);
            let mut changed = cursor.clone();
            let at = at.index(cursor.len());
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != cursor);
            prop_assert_eq!(open(&changed, &list), None);
        }

        #[test]
        fn no_cursor_panics(text in "\\PC{0,80}") {
            let _ = open(&text, &[0; 32]);
        }
    }
}
