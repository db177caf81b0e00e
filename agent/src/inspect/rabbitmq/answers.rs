//! The management API's answers: who we are to it, where it listens, how full its nodes are, and its connections.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::inspect::server::{Session, SessionState};
use crate::scrub;

/// Most connections that are read in one look, and how many come with one answer: the API gives no more.
pub(super) const MAX_CONNECTIONS: u32 = 10_000;
pub(super) const PAGE: u32 = 500;
/// Most places at which a cluster takes connections that are kept.
const MAX_PLACES: usize = 64;
const MAX_NAME: usize = 63;

pub(super) const WHO: &str = "whoami";
pub(super) const OVERVIEW: &str = "overview?columns=rabbitmq_version,listeners";
pub(super) const NODES: &str = "nodes?columns=running,sockets_used,sockets_total,fd_used,fd_total";

/// One page of the connections, in an order that stands while pages are turned.
pub(super) fn page(number: u32) -> String {
    format!(
        "connections?page={number}&page_size={PAGE}&sort=name&\
         columns=name,type,peer_host,peer_port,host,port,user,vhost,state,user_provided_name"
    )
}

fn json<T: DeserializeOwned>(body: &[u8], what: &'static str) -> Result<T, &'static str> {
    serde_json::from_slice(body).map_err(|_| what)
}

/// Whether the user may see what is not its own.
pub(super) fn is_monitor(body: &[u8]) -> Result<bool, &'static str> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Tags {
        List(Vec<String>),
        /// Before version 3.9.
        Text(String),
    }
    #[derive(Deserialize)]
    struct Who {
        tags: Tags,
    }
    let sees = |tag: &str| ["monitoring", "administrator"].contains(&tag.trim());
    Ok(match json::<Who>(body, "the answer of whoami")?.tags {
        Tags::List(all) => all.iter().any(|it| sees(it)),
        Tags::Text(all) => all.split(',').any(sees),
    })
}

/// What the cluster is and where it listens for others than people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overview {
    /// `3.10.8`.
    pub(super) version: String,
    pub(super) ports: BTreeSet<u16>,
}

impl Overview {
    pub(super) fn read(body: &[u8]) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Listener {
            #[serde(default)]
            protocol: String,
            port: Option<u16>,
        }
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            rabbitmq_version: String,
            #[serde(default)]
            listeners: Vec<Listener>,
        }
        // To a user without the tag it is an empty list.
        let Ok(body) = json::<Body>(body, "") else {
            return json::<Vec<()>>(body, "the answer of overview").map(|_| Self::default());
        };
        let serves = |it: &Listener| !it.protocol.starts_with("http") && it.protocol != "clustering";
        let number = |text: &str| text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(20).collect();
        Ok(Self {
            version: number(&body.rabbitmq_version),
            ports: body.listeners.iter().filter(|it| serves(it)).filter_map(|it| it.port).take(MAX_PLACES).collect(),
        })
    }
}

/// Used and total of what a connection takes at the fullest node: sockets, or descriptors where sockets are not told
/// (from version 4 on); `None` when no node tells.
pub(super) fn room(body: &[u8]) -> Result<Option<(u32, u32)>, &'static str> {
    #[derive(Deserialize)]
    struct Node {
        running: Option<bool>,
        sockets_used: Option<f64>,
        sockets_total: Option<f64>,
        fd_used: Option<f64>,
        fd_total: Option<f64>,
    }
    let count = |it: f64| (it.is_finite() && it >= 0.0).then_some(it.min(f64::from(u32::MAX)) as u32);
    let pair = |used: Option<f64>, total: Option<f64>| {
        let total = total.and_then(count).filter(|it| *it > 0)?;
        Some((used.and_then(count)?, total))
    };
    let nodes: Vec<Node> = json(body, "the answer of nodes")?;
    let rooms = nodes.iter().filter(|it| it.running != Some(false));
    let rooms =
        rooms.filter_map(|it| pair(it.sockets_used, it.sockets_total).or_else(|| pair(it.fd_used, it.fd_total)));
    let share = |it: &(u32, u32)| f64::from(it.0) / f64::from(it.1);
    Ok(rooms.max_by(|a, b| share(a).total_cmp(&share(b))))
}

/// Connections of the pages so far.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) sessions: Vec<Session>,
    /// Where nodes took them, as those see themselves.
    pub(super) places: BTreeSet<SocketAddr>,
    seen: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
    peer_host: Option<String>,
    peer_port: Option<u16>,
    host: Option<String>,
    port: Option<u16>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    vhost: String,
    #[serde(default)]
    state: String,
    user_provided_name: Option<String>,
}

impl Connections {
    /// Takes one page in; gives the number of pages.
    pub(super) fn take(&mut self, body: &[u8]) -> Result<u32, String> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total_count: u32,
            #[serde(default)]
            page_count: u32,
            items: Vec<Row>,
        }
        let page: Page = json(body, "the answer of connections")?;
        if page.total_count > MAX_CONNECTIONS || page.items.len() > PAGE as usize {
            return Err(format!("more than {MAX_CONNECTIONS} connections"));
        }
        for row in page.items {
            // One inside the server, as of a shovel, has no socket.
            let Some(session) = session(&row).filter(|_| row.kind != "direct") else { continue };
            let place =
                |host: &str, port| host.parse::<IpAddr>().ok().map(|it| SocketAddr::new(it.to_canonical(), port));
            if let (Some(host), Some(port)) = (&row.host, row.port)
                && self.places.len() < MAX_PLACES
            {
                self.places.extend(place(host, port));
            }
            // A page that is turned while connections end shows some twice.
            if self.seen.insert(row.name) {
                self.sessions.push(session);
            }
        }
        Ok(page.page_count.min(MAX_CONNECTIONS.div_ceil(PAGE)))
    }
}

fn session(row: &Row) -> Option<Session> {
    let port = row.peer_port.filter(|it| *it > 0)?;
    let address = row.peer_host.as_deref().and_then(|it| it.parse::<IpAddr>().ok());
    let name = |text: &str| -> Arc<str> { scrub::text(text, MAX_NAME).into() };
    Some(Session {
        backend: port.into(),
        address: address.map(|it| it.to_canonical()),
        address_candidates: Vec::new(),
        port: Some(port),
        socket_fd: None,
        client_pid: None,
        link: None,
        database: name(&row.vhost),
        user: name(&row.user),
        application_name: name(family(row.user_provided_name.as_deref().unwrap_or_default())),
        // A connection carries many channels; that it runs says neither that one is at work nor that none is.
        state: match row.state.as_str() {
            "flow" | "blocked" | "starting" | "tuning" | "opening" | "closing" => SessionState::Active,
            _ => SessionState::Unknown,
        },
        state_age: None,
        transaction_age: None,
        session_age: None,
        holds_lock: false,
        waits_for: match row.state.as_str() {
            "blocked" | "blocking" => Some("resource alarm: memory or disk".into()),
            "flow" => Some("flow control: it publishes faster than the server takes".into()),
            _ => None,
        },
        statement: None,
    })
}

/// What connections of one application have in common: `shop` of `shop-12`, `rabbitConnectionFactory` of
/// `rabbitConnectionFactory#1a2b:0`.
fn family(name: &str) -> &str {
    let name = name.split_once('#').map_or(name, |(name, _)| name);
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = if stem.len() == name.len() { name } else { stem.trim_end_matches(['-', '_', '.', ':', '@', ' ']) };
    if stem.is_empty() { name } else { stem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROW: &str = r#"{"name":"10.0.0.9:40000 -> 10.0.0.8:5672","type":"network","peer_host":"10.0.0.9",
        "peer_port":40000,"host":"10.0.0.8","port":5672,"user":"web","vhost":"/","state":"running",
        "user_provided_name":"shop-3"}"#;

    fn page_of(rows: &[String]) -> String {
        format!(r#"{{"total_count":{0},"page_count":1,"items":[{1}]}}"#, rows.len(), rows.join(","))
    }

    fn read(rows: &[String]) -> Connections {
        let mut all = Connections::default();
        assert_eq!(all.take(page_of(rows).as_bytes()), Ok(1));
        all
    }

    #[test]
    fn a_row_is_a_session() {
        let all = read(&[ROW.to_owned()]);
        let it = &all.sessions[0];
        assert_eq!((it.address, it.port, it.backend), ("10.0.0.9".parse().ok(), Some(40000), 40000));
        assert_eq!((&*it.database, &*it.user, &*it.application_name), ("/", "web", "shop"));
        assert_eq!((it.state, it.waits_for.as_deref()), (SessionState::Unknown, None));
        let place: SocketAddr = "10.0.0.8:5672".parse().expect("an address");
        assert_eq!(all.places.into_iter().collect::<Vec<_>>(), [place]);
    }

    #[test]
    fn states_that_say_something_are_said() {
        for (state, expected, waits) in [
            ("flow", SessionState::Active, true),
            ("blocked", SessionState::Active, true),
            ("blocking", SessionState::Unknown, true),
            ("", SessionState::Unknown, false),
        ] {
            let all = read(&[ROW.replace("running", state)]);
            assert_eq!((all.sessions[0].state, all.sessions[0].waits_for.is_some()), (expected, waits), "{state}");
        }
    }

    #[test]
    fn what_has_no_socket_or_comes_twice_is_left_out() {
        let rows =
            [ROW.to_owned(), ROW.to_owned(), ROW.replace("\"network\"", "\"direct\"").replace("40000 ->", "1 ->")];
        assert_eq!(read(&rows).sessions.len(), 1);
        let six = ROW.replace(r#""peer_host":"10.0.0.9""#, r#""peer_host":"::ffff:10.0.0.9""#);
        assert_eq!(read(&[six]).sessions[0].address, "10.0.0.9".parse().ok());
    }

    #[test]
    fn too_much_and_nonsense_are_said() {
        let mut all = Connections::default();
        let many = r#"{"total_count":10001,"page_count":21,"items":[]}"#;
        assert_eq!(all.take(many.as_bytes()), Err("more than 10000 connections".to_owned()));
        assert_eq!(all.take(b"[]"), Err("the answer of connections".to_owned()));
        assert_eq!(all.take(br#"{"total_count":0,"page_count":0,"items":[]}"#), Ok(0));
    }

    #[test]
    fn the_fullest_node_counts_and_one_that_is_down_does_not() {
        let node = |running: bool, used: u32, total: u32| {
            format!(
                r#"{{"running":{running},"sockets_used":{used},"sockets_total":{total},"fd_used":9,"fd_total":90}}"#
            )
        };
        let nodes = format!("[{},{},{}]", node(true, 10, 100), node(true, 20, 100), node(false, 99, 100));
        assert_eq!(room(nodes.as_bytes()), Ok(Some((20, 100))));
        assert_eq!(room(br#"[{"fd_used":40,"fd_total":1000}]"#), Ok(Some((40, 1000))));
        assert_eq!(room(br#"[{"running":true}]"#), Ok(None));
        assert!(room(b"{}").is_err());
    }

    #[test]
    fn tags_say_whether_all_is_seen() {
        assert_eq!(is_monitor(br#"{"name":"a","tags":["monitoring"]}"#), Ok(true));
        assert_eq!(is_monitor(br#"{"name":"a","tags":"policymaker,administrator"}"#), Ok(true));
        assert_eq!(is_monitor(br#"{"name":"a","tags":["management"]}"#), Ok(false));
        assert!(is_monitor(b"<html>").is_err());
    }

    #[test]
    fn listeners_for_people_and_for_nodes_are_no_ports_of_clients() {
        let body = br#"{"rabbitmq_version":"3.10.8+x","listeners":[{"protocol":"amqp","port":5672},
            {"protocol":"amqp/ssl","port":5671},{"protocol":"http","port":15672},{"protocol":"clustering","port":25672}]}"#;
        let overview = Overview::read(body).expect("is read");
        assert_eq!((overview.version.as_str(), overview.ports.into_iter().collect()), ("3.10.8", vec![5671, 5672]));
        assert_eq!(Overview::read(b"[]"), Ok(Overview::default()));
    }

    #[test]
    fn connections_of_one_application_have_one_name() {
        for (name, expected) in [
            ("shop-12", "shop"),
            ("rabbitConnectionFactory#1a2b:0", "rabbitConnectionFactory"),
            ("orders", "orders"),
            ("42", "42"),
            ("", ""),
        ] {
            assert_eq!(family(name), expected);
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(body in proptest::collection::vec(any::<u8>(), 0..64), number in "-?[0-9]{1,12}(e[0-9]{1,3})?") {
            let nodes = format!(r#"[{{"sockets_used":{number},"sockets_total":{number}}}]"#);
            let rows = format!(r#"{{"total_count":1,"page_count":{number},"items":[{{"peer_port":{number}}}]}}"#);
            for body in [&body[..], nodes.as_bytes(), rows.as_bytes()] {
                let _ = (is_monitor(body), Overview::read(body), room(body), Connections::default().take(body));
            }
        }

        #[test]
        fn no_name_panics(name in "\\PC{0,20}[-0-9#]{0,4}") {
            prop_assert!(name.starts_with(family(&name)));
        }
    }
}
