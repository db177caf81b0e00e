//! Looks at management APIs that say what a test wants.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::inspect::Rows;

const MONITOR: &str = r#"{"name":"tickbird","tags":["monitoring"]}"#;
const OVERVIEW: &str = r#"{"rabbitmq_version":"3.10.8","listeners":[{"protocol":"amqp","port":5672}]}"#;
const NODES: &str = r#"[{"running":true,"sockets_used":20,"sockets_total":27}]"#;

fn row(port: u16) -> String {
    format!(
        r#"{{"name":"10.0.0.9:{port}","type":"network","peer_host":"10.0.0.9","peer_port":{port},"host":"10.0.0.8",
            "port":5673,"user":"web","vhost":"/","state":"running"}}"#
    )
}

/// Two pages with a row each.
fn connections(page: u16) -> String {
    format!(r#"{{"total_count":2,"page_count":2,"items":[{}]}}"#, row(40_000 + page))
}

type Answers = Vec<(&'static str, u16, String)>;

fn good() -> Answers {
    vec![
        ("/api/whoami", 200, MONITOR.to_owned()),
        ("/api/overview", 200, OVERVIEW.to_owned()),
        ("/api/nodes", 200, NODES.to_owned()),
        ("page=1&", 200, connections(1)),
        ("page=2&", 200, connections(2)),
    ]
}

fn with(part: &str, status: u16, body: &str) -> Answers {
    let change = |(path, was, said): (&'static str, u16, String)| match path.contains(part) {
        true => (path, status, body.to_owned()),
        false => (path, was, said),
    };
    good().into_iter().map(change).collect()
}

async fn serve(mut socket: TcpStream, answers: Answers) {
    let mut asked = Vec::new();
    while let Ok(1..) = socket.read_buf(&mut asked).await {
        let text = String::from_utf8_lossy(&asked).into_owned();
        if !text.ends_with("\r\n\r\n") {
            continue;
        }
        assert!(text.to_ascii_lowercase().contains("authorization: basic dglja2jpcmq6sfvovevsmg=="), "{text}");
        let line = text.lines().next().unwrap_or_default();
        let found = answers.iter().find(|(path, ..)| line.contains(path));
        let (status, body) = found.map_or((404, ""), |(_, status, body)| (*status, body.as_str()));
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        asked.clear();
    }
}

async fn look_at(answers: Answers) -> (ServerLook, String) {
    look_twice_at(answers, Duration::ZERO).await
}

/// Two looks with so much between them; gives the last.
async fn look_twice_at(answers: Answers, between: Duration) -> (ServerLook, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound").to_string();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, answers.clone()));
        }
    });
    let config = Config::parse(&format!("http://tickbird:HUNTER2@{address}")).expect("a URL");
    let mut inspector = RabbitMqInspector::new(config);
    let _ = inspector.inspect(Duration::from_secs(100)).await;
    let reading = inspector.inspect(Duration::from_secs(100) + between).await;
    let Rows::Server(look) = reading.rows else { panic!("other rows") };
    assert!(!format!("{look:?}").contains("HUNTER2"));
    (look, address)
}

const REFUSED: &str = r#"{"error":"not_authorised","reason":"Not monitor user"}"#;

#[tokio::test]
async fn all_pages_make_a_look_at_the_ports_that_clients_use() {
    let (look, _) = look_at(good()).await;
    assert_eq!((look.used, look.slots), (Value::Known(20.0), Value::Known(27.0)));
    let sessions = look.sessions.expect("seen");
    assert_eq!(sessions.iter().map(|it| it.backend).collect::<Vec<_>>(), [40_001, 40_002]);
    let ends: Vec<String> = look.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(ends, ["10.0.0.8:5673", "127.0.0.1:5672"], "never the port of the API");
    assert!(matches!(look.connect, Value::Known(_)) && look.refused.is_none());
}

#[tokio::test]
async fn a_user_without_the_tag_is_told_which_it_needs() {
    let (look, address) = look_at(with("whoami", 200, r#"{"tags":["management"]}"#)).await;
    let expected =
        format!("may not read connections of other users (the user tickbird has no tag `monitoring`) at {address}");
    assert_eq!(look.sessions.err().map(|it| it.to_string()), Some(expected));
    let (look, address) = look_at(with("nodes", 401, REFUSED)).await;
    assert_eq!(look.sessions.map(|it| it.len()), Ok(2), "each part is missing by itself");
    let expected = format!("may not read RabbitMQ at {address}: Not monitor user (HTTP 401)");
    assert!(matches!(&look.used, Value::Unknown(reason) if reason.to_string() == expected), "{:?}", look.used);
}

#[tokio::test]
async fn a_wrong_password_is_our_own_blindness_and_a_broken_server_is_evidence() {
    let (look, _) = look_at(with("whoami", 401, r#"{"error":"not_authorized","reason":"Login failed"}"#)).await;
    assert_eq!(look.refused, None);
    assert!(matches!(&look.sessions, Err(Reason::Refused(_))) && matches!(look.connect, Value::Unknown(_)));
    let (look, address) = look_at(with("whoami", 503, "starting")).await;
    assert_eq!(look.refused.as_deref(), Some(&*format!("RabbitMQ at {address}: HTTP 503")));
    let (look, address) = look_at(with("whoami", 200, "<html>")).await;
    assert_eq!(look.refused.as_deref(), Some(&*format!("RabbitMQ at {address}: what answers is not RabbitMQ")));
}

#[tokio::test]
async fn an_answer_that_cannot_be_understood_is_no_answer() {
    let (look, _) = look_at(with("page=1", 200, r#"{"items":7}"#)).await;
    assert!(matches!(&look.sessions, Err(Reason::Malformed(_))), "{:?}", look.sessions);
    let (look, _) = look_at(with("nodes", 200, "[]")).await;
    assert!(matches!(&look.slots, Value::Unknown(Reason::NotYet(_))), "a node reports five seconds after its start");
    let (look, _) = look_twice_at(with("nodes", 200, "[]"), Duration::from_secs(30)).await;
    assert!(matches!(&look.slots, Value::Unknown(Reason::Absent(_))), "{:?}", look.slots);
    let (look, _) = look_at(with("page=2", 400, r#"{"error":"page_out_of_range","reason":"Page out of range"}"#)).await;
    assert_eq!(look.sessions.map(|it| it.len()), Ok(1), "connections ended while pages were turned");
}

#[tokio::test]
async fn a_body_without_end_is_left() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("accepts");
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n").await;
        while socket.write_all(&[b' '; 8192]).await.is_ok() {}
    });
    let config = Config::parse(&format!("http://tickbird:HUNTER2@{address}")).expect("a URL");
    let mut inspector = RabbitMqInspector::new(config);
    let Rows::Server(look) = inspector.inspect(Duration::ZERO).await.rows else { panic!("other rows") };
    assert!(look.refused.is_some() && look.sessions.is_err());
}
