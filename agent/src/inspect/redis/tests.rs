//! Looks at servers that say what a test wants.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::inspect::Rows;
use crate::inspect::server::SessionState;

const INFO: &str = "redis_version:7.0.15\r\nrun_id:aa\r\nconnected_clients:2\r\nmaxclients:50\r\nrole:master\r\n";
const LIST: &str = "id=3 addr=10.0.0.9:40000 laddr=127.0.0.1:6379 fd=8 name= age=9 idle=4 flags=N db=0 sub=0 psub=0 \
                    multi=-1 qbuf=0 cmd=get user=web\nid=4 addr=127.0.0.1:1 laddr=127.0.0.1:6379 fd=9 name=tickbird-agent \
                    age=9 idle=0 flags=N db=0 sub=0 psub=0 multi=-1 qbuf=26 cmd=client|list user=tickbird\n";

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// One answer for each command that comes, by what the command contains; a greeting that nobody asked for, and the end.
async fn serve(listener: TcpListener, greeting: &'static str, answers: Vec<(&'static str, String)>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        if greeting.is_empty() {
            tokio::spawn(answer(socket, answers.clone()));
        } else {
            let _ = socket.write_all(greeting.as_bytes()).await;
        }
    }
}

async fn answer(mut socket: TcpStream, answers: Vec<(&'static str, String)>) {
    let mut asked = Vec::with_capacity(4096);
    while let Ok(1..) = socket.read_buf(&mut asked).await {
        let text = String::from_utf8_lossy(&asked).into_owned();
        let found = answers.iter().find(|(word, _)| text.contains(word));
        let said = found.map_or("-ERR unknown command\r\n", |(_, said)| said);
        if socket.write_all(said.as_bytes()).await.is_err() {
            return;
        }
        asked.clear();
    }
}

async fn look_at(greeting: &'static str, answers: &[(&'static str, &str)]) -> (ServerLook, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound").to_string();
    let answers = answers.iter().map(|(word, said)| (*word, (*said).to_owned())).collect();
    tokio::spawn(serve(listener, greeting, answers));
    let config = Config::parse(&format!("redis://tickbird:HUNTER2@{address}/0"), true).expect("a DSN");
    let mut inspector = RedisInspector::new(config);
    inspector.slots = greeting.contains("max number").then_some(50);
    let reading = inspector.inspect(Duration::from_secs(100)).await;
    let Rows::Server(look) = reading.rows else { panic!("other rows") };
    assert!(!format!("{look:?}").contains("HUNTER2"));
    (look, address)
}

const NOPERM: &str = "-NOPERM this user has no permissions to run the 'client|list' command\r\n";

#[tokio::test]
async fn two_commands_make_a_look() {
    let (info, list) = (bulk(INFO), bulk(LIST));
    let answers =
        [("AUTH", "+OK\r\n"), ("SETNAME", "+OK\r\n"), ("ID", ":4\r\n"), ("INFO", info.as_str()), ("LIST", &list)];
    let (look, _) = look_at("", &answers).await;
    assert_eq!((look.used, look.slots), (Value::Known(2.0), Value::Known(50.0)));
    let sessions = look.sessions.expect("seen");
    assert_eq!(sessions.iter().map(|it| (it.backend, it.state)).collect::<Vec<_>>(), [(3, SessionState::Idle)]);
    assert!(matches!(look.facts.identifier, Some(Ok(it)) if &*it == "aa"));
    assert!(matches!(look.connect, Value::Known(_)) && look.refused.is_none());
}

#[tokio::test]
async fn a_right_that_is_missing_hides_its_own_part_only() {
    let info = bulk(INFO);
    let answers = [("AUTH", "+OK\r\n"), ("SETNAME", NOPERM), ("ID", NOPERM), ("INFO", info.as_str()), ("LIST", NOPERM)];
    let (look, address) = look_at("", &answers).await;
    assert_eq!((look.used, look.slots), (Value::Known(2.0), Value::Known(50.0)));
    let expected = format!("may not read Redis at {address}: CLIENT LIST: the user has no right to it");
    assert_eq!(look.sessions.err().map(|it| it.to_string()), Some(expected));

    let list = bulk(LIST);
    let answers = [("AUTH", "+OK\r\n"), ("SETNAME", NOPERM), ("ID", ":4\r\n"), ("INFO", NOPERM), ("LIST", &list)];
    let (look, _) = look_at("", &answers).await;
    assert_eq!(look.sessions.map(|it| it.len()), Ok(1));
    assert!(matches!(look.used, Value::Unknown(Reason::NotGranted(_))) && matches!(look.slots, Value::Unknown(_)));
}

#[tokio::test]
async fn the_limit_of_an_old_server_is_a_setting() {
    let (info, list) = (bulk(&INFO.replace("maxclients:50\r\n", "")), bulk(LIST));
    let limit = "*2\r\n$10\r\nmaxclients\r\n$2\r\n24\r\n";
    let rest = [("INFO", info.as_str()), ("LIST", &list), ("CONFIG", limit)];
    let answers = [&[("AUTH", "+OK\r\n"), ("SETNAME", "+OK\r\n"), ("ID", ":4\r\n")][..], &rest].concat();
    assert_eq!(look_at("", &answers).await.0.slots, Value::Known(24.0));
    let slots = look_at("", &answers[..5]).await.0.slots;
    assert!(matches!(&slots, Value::Unknown(Reason::Unanswered(_))), "{slots:?}");
}

#[tokio::test]
async fn a_full_server_is_evidence_and_a_wrong_password_is_our_own_blindness() {
    let (look, address) = look_at("-ERR max number of clients reached\r\n", &[]).await;
    assert_eq!(look.refused.as_deref(), Some(&*format!("Redis at {address}: ERR max number of clients reached")));
    assert_eq!((look.used, look.slots), (Value::Known(50.0), Value::Known(50.0)));

    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    let (look, _) = look_at("", &[("AUTH", wrong)]).await;
    assert_eq!(look.refused, None);
    assert!(matches!(&look.sessions, Err(Reason::Refused(_))) && matches!(look.connect, Value::Unknown(_)));

    let (look, _) = look_at("", &[("AUTH", "-LOADING Redis is loading the dataset in memory\r\n")]).await;
    assert!(look.refused.is_some_and(|it| it.contains("loading")));
}

#[tokio::test]
async fn what_is_no_redis_is_said_to_be_none() {
    let (look, address) = look_at("HTTP/1.1 400 Bad Request\r\n\r\n", &[]).await;
    assert_eq!(look.refused.as_deref(), Some(&*format!("Redis at {address}: what answers is not Redis")));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_left_in_time() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    let config = Config::parse(&format!("redis://{address}"), true).expect("a DSN");
    let mut inspector = RedisInspector::new(config);
    let reading = inspector.inspect(Duration::ZERO).await;
    let Rows::Server(look) = reading.rows else { panic!("other rows") };
    assert!(look.refused.is_some_and(|it| it.contains("within 2 s")), "the first answer did not come");
}
