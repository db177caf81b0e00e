//! Against a server on this host.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Looks once at a page that is answered like this.
async fn look(status: &str, body: impl Into<Vec<u8>>, make: impl Fn(&str) -> Config) -> Reading {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let url = format!("http://{}/pool?key=hidden", listener.local_addr().expect("is bound"));
    let body = body.into();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut asked = [0; 4096];
        let _ = stream.read(&mut asked).await.expect("is asked");
        stream.write_all(head.as_bytes()).await.expect("answers");
        // A reader of a bounded body hangs up early.
        let _ = stream.write_all(&body).await;
    });
    let reading = PoolInspector::new(make(&url)).inspect(Duration::ZERO).await;
    server.await.expect("the server ends");
    reading
}

fn metrics(url: &str) -> Config {
    Config::metrics("shop", None, url).expect("a URL")
}

fn stats(reading: Reading) -> PoolStats {
    let Rows::PoolStats(stats) = reading.rows else { panic!("other rows") };
    stats
}

#[tokio::test]
async fn a_page_of_metrics_gives_pools_and_measures() {
    let page = "hikaricp_connections_active{pool=\"main\"} 9\nhikaricp_connections_idle{pool=\"main\"} 1\n\
                hikaricp_connections_max{pool=\"main\"} 10\nhikaricp_connections_pending{pool=\"main\"} 4\n";
    let reading = look("200 OK", page, metrics).await;
    let seen: Vec<_> = reading
        .observations
        .iter()
        .map(|it| format!("{} {} {:?}", it.target, it.measure.name, it.value.known()))
        .collect();
    assert_eq!(
        seen,
        [
            "pool:shop#main pool.limit Some(10.0)",
            "pool:shop#main pool.in_use Some(9.0)",
            "pool:shop#main pool.idle Some(1.0)",
            "pool:shop#main pool.waiting Some(4.0)",
        ]
    );
    let stats = stats(reading);
    let pool = &stats.pools.as_ref().expect("pools")[0];
    assert_eq!(pool.open, Value::Known(10.0));
    assert!(pool.source.starts_with("hikaricp_connections_* of http://127.0.0.1:"), "{}", pool.source);
    assert!(!pool.source.contains("hidden") && !stats.target.as_str().contains("hidden"), "a query is not shown");
}

#[tokio::test]
async fn a_page_of_health_is_read_also_when_it_says_that_something_is_broken() {
    let page = r#"{"pool":{"size":5,"checked_out":5,"waiting":15}}"#;
    let make = |url: &str| {
        let pointers = Pointers {
            limit: Pointer::parse("/pool/size"),
            in_use: Pointer::parse("/pool/checked_out"),
            waiting: Pointer::parse("/pool/waiting"),
            ..Pointers::default()
        };
        Config::health("shop", Some("[::ffff:10.0.0.5]:5432".parse().expect("an address")), url, pointers)
            .expect("a URL")
    };
    let stats = stats(look("503 Service Unavailable", page, make).await);
    let pool = &stats.pools.as_ref().expect("pools")[0];
    assert_eq!(
        (&pool.limit, &pool.in_use, &pool.waiting),
        (&Value::Known(5.0), &Value::Known(5.0), &Value::Known(15.0))
    );
    assert_eq!(stats.endpoint, Some("10.0.0.5:5432".parse().expect("an address")), "as sockets show it");
    assert_eq!((&*pool.name, pool.oldest_wait.low()), ("default", None));
}

#[tokio::test]
async fn what_cannot_be_read_is_a_reason_and_no_number() {
    let reason = |reading: Reading| {
        assert!(reading.observations.is_empty());
        stats(reading).pools.expect_err("a reason").to_string()
    };
    let told = reason(look("404 Not Found", "", metrics).await);
    assert!(told.starts_with("cannot reach http://") && told.ends_with("/pool: status 404"), "{told}");
    let told = reason(look("200 OK", "up 1\n", metrics).await);
    assert!(told.starts_with("not offered here: numbers of a pool at http://"), "{told}");
    let told = reason(look("200 OK", "x 1\n".repeat(MAX_BODY_LINES), metrics).await);
    assert!(told.ends_with("a body of more than 1 MiB"), "{told}");
    let told = reason(look("200 OK", vec![0xff, 0xfe], metrics).await);
    assert!(told.ends_with("not UTF-8"), "{told}");
    let many: String = (0..70).map(|it| format!("hikaricp_connections_active{{pool=\"p{it}\"}} 1\n")).collect();
    let told = reason(look("200 OK", many, metrics).await);
    assert!(told.contains(" pools"), "{told}");
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds").local_addr().expect("is bound");
    let told = reason(PoolInspector::new(metrics(&format!("http://{nobody}/"))).inspect(Duration::ZERO).await);
    assert!(told.ends_with("connection refused"), "{told}");
}

/// Four bytes each, more than a mebibyte together.
const MAX_BODY_LINES: usize = 300_000;
