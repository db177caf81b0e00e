//! A page of health: JSON with the numbers where the operator says, or where a library's names stand; or a plain text.

use serde_json::Value as Json;

use super::shape::{self, Numbers};
use super::{MAX_POOLS, Told, status_text};

/// Where in the JSON each number stands (RFC 6901).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pointers {
    /// Most connections.
    pub limit: Option<Pointer>,
    /// Connections handed out.
    pub in_use: Option<Pointer>,
    /// Connections not handed out.
    pub idle: Option<Pointer>,
    /// Connections that are open.
    pub open: Option<Pointer>,
    /// Connections that are kept (`pool_size`).
    pub size: Option<Pointer>,
    /// Connections beyond those (`max_overflow`): with the size, the limit.
    pub overflow: Option<Pointer>,
    /// Callers that wait.
    pub waiting: Option<Pointer>,
    /// Seconds for which the longest has waited.
    pub oldest_wait: Option<Pointer>,
    /// A text of SQLAlchemy's `pool.status()`.
    pub status: Option<Pointer>,
}

/// A JSON pointer that can be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// Reads `/pool/size`; `None` when it is no pointer.
    pub fn parse(text: &str) -> Option<Self> {
        let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        (escapes && text.starts_with('/') && text.len() <= 200).then(|| Self(text.to_owned()))
    }
}

impl Pointers {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Values of a page that are looked at for a library's names.
const MAX_VALUES: usize = 20_000;

/// The pools of a page.
pub(super) fn pools(text: &str, pointers: &Pointers) -> Result<Vec<Told>, String> {
    let json: Json = match serde_json::from_str(text) {
        Ok(json) => json,
        Err(_) if pointers.is_empty() => return Ok(status_text::read(text).map(by_status).into_iter().collect()),
        Err(_) => return Err("not JSON".to_owned()),
    };
    if pointers.is_empty() { Ok(found(&json)) } else { pointed(&json, pointers).map(|it| vec![it]) }
}

fn by_status(numbers: Numbers) -> Told {
    Told { name: String::new(), numbers, processes: 1, by: "SQLAlchemy's status" }
}

/// What stands where the operator said. A pointer to nothing is a mistake, not a zero.
fn pointed(json: &Json, pointers: &Pointers) -> Result<Told, String> {
    let read = |pointer: &Option<Pointer>| {
        let Some(Pointer(path)) = pointer else { return Ok(None) };
        let found = json.pointer(path).ok_or_else(|| format!("nothing at {path}"))?;
        number(found).map(Some).ok_or_else(|| format!("no number at {path}"))
    };
    let mut numbers = Numbers::default();
    if let Some(Pointer(path)) = &pointers.status {
        let text = json.pointer(path).and_then(Json::as_str);
        numbers = text.and_then(status_text::read).ok_or_else(|| format!("no pool status at {path}"))?;
    }
    let (size, overflow) = (read(&pointers.size)?, read(&pointers.overflow)?);
    let both = size.zip(overflow).map(|(size, overflow)| size + overflow);
    numbers.limit = read(&pointers.limit)?.or(both);
    numbers.in_use = read(&pointers.in_use)?.or(numbers.in_use);
    numbers.idle = read(&pointers.idle)?.or(numbers.idle);
    numbers.open = read(&pointers.open)?.or(numbers.open);
    numbers.size = size.or(numbers.size);
    numbers.waiting = read(&pointers.waiting)?;
    numbers.oldest_wait = read(&pointers.oldest_wait)?;
    Ok(Told { name: String::new(), numbers, processes: 1, by: "numbers" })
}

fn number(json: &Json) -> Option<f64> {
    match json {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => text.trim().parse().ok().filter(|it: &f64| it.is_finite()),
        _ => None,
    }
}

/// Every object with a library's names, and every text with a pool's status, bounded.
fn found(json: &Json) -> Vec<Told> {
    let (mut told, mut texts) = (Vec::new(), Vec::new());
    let mut left = vec![("", json)];
    let mut seen = 0;
    while let Some((name, value)) = left.pop() {
        seen += 1;
        if seen > MAX_VALUES || told.len() + texts.len() > MAX_POOLS {
            break;
        }
        match value {
            Json::Object(map) => {
                let get = |key: &str| map.iter().find(|(it, _)| shape::plain(it) == key).and_then(|it| number(it.1));
                match shape::recognised(get) {
                    Some((numbers, by)) => told.push(Told { name: name.to_owned(), numbers, processes: 1, by }),
                    None => left.extend(map.iter().map(|(key, value)| (key.as_str(), value))),
                }
            }
            Json::Array(items) => left.extend(items.iter().map(|it| (name, it))),
            Json::String(text) => {
                texts.extend(status_text::read(text).map(|it| Told { name: name.to_owned(), ..by_status(it) }));
            }
            _ => (),
        }
    }
    // A page with both says the same twice.
    if told.is_empty() { texts } else { told }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(path: &str) -> Option<Pointer> {
        Pointer::parse(path)
    }

    const PAGE: &str = r#"{"status":"ok","pool":{"size":5,"checked_out":"4","waiting":15,"max_overflow":2},
        "text":"Pool size: 5  Connections in pool: 1 Current Overflow: 0 Current Checked out connections: 4"}"#;

    #[test]
    fn numbers_are_read_where_the_operator_says() {
        let pointers = Pointers {
            size: at("/pool/size"),
            overflow: at("/pool/max_overflow"),
            in_use: at("/pool/checked_out"),
            waiting: at("/pool/waiting"),
            ..Pointers::default()
        };
        let it = pools(PAGE, &pointers).expect("a page")[0].numbers;
        assert_eq!((it.limit, it.in_use, it.waiting), (Some(7.0), Some(4.0), Some(15.0)));
        let it = pools(PAGE, &Pointers { status: at("/text"), ..Pointers::default() }).expect("a page")[0].numbers;
        assert_eq!((it.in_use, it.idle, it.limit), (Some(4.0), Some(1.0), None));
    }

    #[test]
    fn a_pointer_to_nothing_is_told_and_is_no_zero() {
        let wrong = |pointers| pools(PAGE, &pointers).expect_err("nothing there");
        assert_eq!(wrong(Pointers { waiting: at("/pool/waiters"), ..Pointers::default() }), "nothing at /pool/waiters");
        assert_eq!(wrong(Pointers { in_use: at("/status"), ..Pointers::default() }), "no number at /status");
        assert_eq!(wrong(Pointers { status: at("/pool"), ..Pointers::default() }), "no pool status at /pool");
        assert_eq!(pools("ok", &Pointers { limit: at("/a"), ..Pointers::default() }), Err("not JSON".to_owned()));
        assert_eq!((at("pool"), at("/a~2"), at("/a~1b").is_some()), (None, None, true));
    }

    #[test]
    fn without_pointers_the_names_of_the_libraries_are_looked_for() {
        let by = |text: &str| {
            let told = pools(text, &Pointers::default()).expect("a page");
            told.iter().map(|it| format!("{} {}", it.name, it.by)).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(by(r#"{"db":{"main":{"totalCount":5,"idleCount":0,"waitingCount":2}}}"#), "main pg-pool's counts");
        assert_eq!(
            by("Pool size: 5  Connections in pool: 1 Current Overflow: 0 Current Checked out connections: 4"),
            " SQLAlchemy's status"
        );
        assert_eq!(by(PAGE), "pool SQLAlchemy's pool");
        assert_eq!(by(r#"{"status":"ok"}"#), "");
    }

    proptest! {
        #[test]
        fn no_page_panics(text in "[\\[\\]{}\":,a-z0-9 é]{0,60}") {
            let _ = pools(&text, &Pointers::default());
            let _ = pools(&text, &Pointers { limit: at("/a"), ..Pointers::default() });
        }
    }
}
