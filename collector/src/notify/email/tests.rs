//! Against servers that say what a script says; what a real one does stands in `tests/it/mail.rs`.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const BODY: &[u8] =
    br#"{"subject":"[FIRING] caf\u00e9","thread":"I1","decided_at":"2026-11-22T19:00:00Z","text":"one\n.two\n\n"}"#;

fn settings(smarthost: &str, security: Security) -> Settings {
    let to = ["oncall@example.org", "boss@example.org"].map(str::to_owned).into();
    Settings {
        smarthost: smarthost.into(),
        from: "Tickbird <t@example.org>".into(),
        to,
        security,
        ..Settings::default()
    }
}

fn errors(change: impl FnOnce(&mut Settings)) -> Vec<(&'static str, String)> {
    let mut settings = settings("mail.example.org:587", Security::StartTls);
    change(&mut settings);
    let errors = Config::new(settings).expect_err("must be refused");
    errors.iter().map(|it| (it.key(), it.to_string())).collect()
}

#[test]
fn every_mistake_is_named_by_its_key() {
    assert_eq!(errors(|it| it.smarthost = "a b:25".into())[0].0, "smarthost");
    assert_eq!(errors(|it| it.smarthost = "mail:0".into())[0].0, "smarthost");
    assert_eq!(errors(|it| it.smarthost = "mail:smtp".into())[0].1, "`mail:smtp` is not a host and a port");
    assert_eq!(errors(|it| it.smarthost = "[fe80::1]:25".into())[0].1, "`fe80::1` is a link-local address");
    assert_eq!(errors(|it| it.to = Vec::new()), [("to", "names nobody".to_owned())]);
    assert_eq!(errors(|it| it.hello = Some("a\r\nMAIL".into()))[0].0, "hello");
    assert_eq!(errors(|it| it.authorities = Some("no PEM".into()))[0].0, "ca_file");
    let login = Some(("tickbird".to_owned(), Zeroizing::new("s3cret".to_owned())));
    let found = errors(|it| (it.security, it.login, it.from) = (Security::Plain, login, "nobody".into()));
    assert_eq!(found[0], ("from", "`nobody` is no address of a mailbox".to_owned()));
    assert_eq!(found[1], ("user", "would be told in the clear".to_owned()));
    let both = errors(|it| it.to = vec!["a@b>\r\nRCPT TO:<c@d".into(), "w\u{e9}@example.org".into()]);
    assert_eq!(both.len(), 2, "{both:?}");
}

#[test]
fn a_port_is_what_servers_listen_on_for_it_and_nothing_shows_the_password() {
    let port = |smarthost, security| Config::new(settings(smarthost, security)).expect("valid").address();
    assert_eq!(port("mail.example.org", Security::StartTls), "mail.example.org:587");
    assert_eq!(port("mail.example.org", Security::Implicit), "mail.example.org:465");
    assert_eq!(port("::1", Security::Plain), "[::1]:25");
    assert_eq!(port("[::1]:2525", Security::Plain), "[::1]:2525");
    let login = Some(("tickbird".to_owned(), Zeroizing::new("s3cret".to_owned())));
    let config = Config::new(Settings { login, ..settings("mail", Security::StartTls) }).expect("valid");
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn a_letter_is_the_same_each_time_and_says_where_it_belongs() {
    let config = Config::new(settings("mail", Security::StartTls)).expect("valid");
    let written = config.written("msg_1", Timestamp::UNIX_EPOCH, BODY);
    assert_eq!(written, config.written("msg_1", Timestamp::MAX, BODY));
    insta::assert_snapshot!(String::from_utf8(written).expect("ASCII").replace("\r\n", "\n"), @r#"
    From: Tickbird <t@example.org>
    Date: Sun, 22 Nov 2026 19:00:00 +0000
    Subject: [FIRING] =?utf-8?b?Y2Fmw6k=?=
    To: oncall@example.org, boss@example.org
    Message-ID: <msg_1@example.org>
    In-Reply-To: <I1@example.org>
    References: <I1@example.org>
    Auto-Submitted: auto-generated
    MIME-Version: 1.0
    Content-Type: text/plain; charset=utf-8
    Content-Transfer-Encoding: 7bit

    one
    .two
    "#);
}

#[test]
fn what_was_decided_for_another_receiver_is_told_as_it_is() {
    let config = Config::new(settings("mail", Security::StartTls)).expect("valid");
    let written = config.written("msg_1", Timestamp::UNIX_EPOCH, br#"{"type":"incident.resolved"}"#);
    let text = String::from_utf8(written).expect("ASCII");
    assert!(text.contains("decided before this receiver took mail") && text.contains("incident.resolved"), "{text}");
    config.written("msg_1", Timestamp::MIN, &[0xff, b'\r', 0]);
}

/// Answers each line that begins so with what stands beside it, until the script or the connection ends; gives all lines.
async fn serve(
    greeting: &'static str,
    script: &'static [(&'static str, &'static str)],
) -> (String, JoinHandle<Vec<String>>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("has one").to_string();
    let task = tokio::spawn(async move {
        let (stream, _) = socket.accept().await.expect("accepts");
        let (reading, mut writing) = stream.into_split();
        let (mut lines, mut heard) = (BufReader::new(reading).lines(), Vec::new());
        writing.write_all(greeting.as_bytes()).await.expect("writes");
        let mut script = script.iter().peekable();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = script.next_if(|(begin, _)| line.starts_with(begin)).map(|(_, answer)| *answer);
            heard.push(line);
            match answer {
                Some("") => break,
                Some(answer) => writing.write_all(answer.as_bytes()).await.expect("writes"),
                None => (),
            }
        }
        heard
    });
    (address, task)
}

async fn attempt(
    greeting: &'static str,
    script: &'static [(&'static str, &'static str)],
    change: impl FnOnce(&mut Settings),
) -> (Result<Answer, NotifyError>, Vec<String>) {
    let (address, server) = serve(greeting, script).await;
    let mut settings = settings(&address, Security::Plain);
    (settings.hello, settings.timeout) = (Some("collector.example.org".into()), Some(Duration::from_secs(2)));
    change(&mut settings);
    let sent = Config::new(settings).expect("valid").send("msg_1", Timestamp::UNIX_EPOCH, BODY).await;
    (sent, server.await.expect("ends"))
}

const HELLO: &str = "220 mail.example.org\r\n";
const WELL: &str = "250 well\r\n";

#[tokio::test]
async fn a_letter_is_told_line_by_line_and_a_lone_dot_is_its_end_only() {
    let script = &[
        ("EHLO collector.example.org", "250-mail.example.org\r\n250 PIPELINING\r\n"),
        ("MAIL FROM:<t@example.org>", WELL),
        ("RCPT TO:<oncall@example.org>", WELL),
        ("RCPT TO:<boss@example.org>", "550 gone\r\n"),
        ("DATA", "354 go on\r\n"),
        (".", WELL),
        ("QUIT", "221 bye\r\n"),
    ];
    let (sent, heard) = attempt(HELLO, script, |_| ()).await;
    let answer = sent.expect("taken by one of two").to_string();
    assert_eq!(answer, "answered 250, but not for boss@example.org (550)");
    assert!(heard.contains(&"..two".to_owned()) && heard.contains(&"Message-ID: <msg_1@example.org>".to_owned()));
    assert_eq!(heard.iter().filter(|it| *it == ".").count(), 1, "{heard:?}");
    assert_eq!(heard.last().map(String::as_str), Some("QUIT"), "{heard:?}");
}

#[tokio::test]
async fn what_is_refused_and_what_nobody_knows_are_told_apart() {
    let of = |(sent, _): (Result<Answer, NotifyError>, _)| {
        let error = sent.expect_err("must fail");
        (error.to_string(), error.is_uncertain(), error.is_about_the_message())
    };
    let no = |error: &str| (error.to_owned(), false, false);
    assert_eq!(of(attempt("554 no\r\n", &[], |_| ()).await), no("answered 554 to the connection"));
    assert_eq!(of(attempt("HTTP/1.1 400 Bad Request\r\n", &[], |_| ()).await), no("does not speak SMTP"));
    assert_eq!(of(attempt("220\u{2603}\r\n", &[("EHLO", "99 x\r\n")], |_| ()).await), no("does not speak SMTP"));
    let script = &[("EHLO", WELL), ("MAIL", WELL), ("RCPT", "550 no\r\n"), ("RCPT", "551 no\r\n")];
    let all = "refuses boss@example.org (551), oncall@example.org (550)";
    assert_eq!(of(attempt(HELLO, script, |_| ()).await), no(all));
    let script =
        &[("EHLO", WELL), ("MAIL", WELL), ("RCPT", WELL), ("RCPT", WELL), ("DATA", "354 go\r\n"), (".", "554 no\r\n")];
    assert_eq!(of(attempt(HELLO, script, |_| ()).await), ("answered 554 to the letter".into(), false, true));
    let script = &[("EHLO", WELL), ("MAIL", WELL), ("RCPT", WELL), ("RCPT", WELL), ("DATA", "")];
    assert!(!of(attempt(HELLO, script, |_| ()).await).1, "nothing of the letter was said");
    let script = &[("EHLO", WELL), ("MAIL", WELL), ("RCPT", WELL), ("RCPT", WELL), ("DATA", "354 go\r\n"), (".", "")];
    assert_eq!(
        of(attempt(HELLO, script, |_| ()).await),
        ("the connection ended before the answer".into(), true, false)
    );
    let script = &[("EHLO", WELL), ("MAIL", WELL), ("RCPT", WELL), ("RCPT", WELL), ("DATA", "354 go\r\n")];
    assert_eq!(of(attempt(HELLO, script, |_| ()).await), ("no answer within 2000 ms".into(), true, false));
}

#[tokio::test]
async fn one_full_mailbox_keeps_a_letter_from_nobody_else_and_nobody_gets_it_twice() {
    const FIRST: &[(&str, &str)] = &[
        ("EHLO", WELL),
        ("MAIL", WELL),
        ("RCPT TO:<oncall", WELL),
        ("RCPT TO:<boss", "452 full\r\n"),
        ("DATA", "354 go on\r\n"),
        (".", WELL),
        ("QUIT", "221 bye\r\n"),
    ];
    let (address, server) = serve(HELLO, FIRST).await;
    let settings = |address: &str| Settings {
        hello: Some("collector.example.org".into()),
        timeout: Some(Duration::from_secs(2)),
        ..settings(address, Security::Plain)
    };
    let mut config = Config::new(settings(&address)).expect("valid");
    let error = config.send("msg_1", Timestamp::UNIX_EPOCH, BODY).await.expect_err("one is waited for");
    assert_eq!(error.to_string(), "puts off boss@example.org (452); the others have it");
    assert!(error.is_uncertain() && error.leaves_it_well(), "a restart would tell the others again");
    assert!(server.await.expect("ends").contains(&"DATA".to_owned()));

    const SECOND: &[(&str, &str)] = &[
        ("EHLO", WELL),
        ("MAIL", WELL),
        ("RCPT", WELL),
        ("DATA", "354 go on\r\n"),
        (".", WELL),
        ("QUIT", "221 bye\r\n"),
    ];
    let (address, server) = serve(HELLO, SECOND).await;
    config.place = Config::new(settings(&address)).expect("valid").place;
    assert!(config.clone() == config, "who is put off is no part of the configuration");
    let answer = config.clone().send("msg_1", Timestamp::UNIX_EPOCH, BODY).await.expect("taken");
    assert_eq!(answer.to_string(), "answered 250");
    let heard = server.await.expect("ends");
    let asked: Vec<_> = heard.iter().filter(|it| it.starts_with("RCPT")).collect();
    assert_eq!(asked, ["RCPT TO:<boss@example.org>"]);

    const NOBODY: &[(&str, &str)] =
        &[("EHLO", WELL), ("MAIL", WELL), ("RCPT", "451 later\r\n"), ("RCPT", "550 gone\r\n"), ("QUIT", "221 bye\r\n")];
    let (sent, heard) = attempt(HELLO, NOBODY, |_| ()).await;
    let error = sent.expect_err("nobody has it");
    assert_eq!(error.to_string(), "puts off oncall@example.org (451)", "later, perhaps");
    assert!(!error.is_uncertain() && !error.leaves_it_well() && !heard.contains(&"DATA".to_owned()));
}

#[tokio::test]
async fn nothing_is_said_in_the_clear_and_nothing_said_in_the_clear_counts_after_it() {
    let login = || Some(("tickbird".to_owned(), Zeroizing::new("s3cret".to_owned())));
    let secure = |it: &mut Settings| (it.security, it.login) = (Security::StartTls, login());
    let (sent, heard) =
        attempt(HELLO, &[("EHLO", "250-mail\r\n250 AUTH PLAIN\r\n"), ("QUIT", "221 bye\r\n")], secure).await;
    assert!(matches!(sent, Err(NotifyError::NoStartTls)), "{sent:?}");
    assert_eq!(heard, ["EHLO collector.example.org", "QUIT"]);
    // An answer to the EHLO of the TLS session, said before it.
    let injects = &[("EHLO", "250-mail\r\n250 STARTTLS\r\n"), ("STARTTLS", "220 go\r\n250-mail\r\n250 AUTH PLAIN\r\n")];
    let (sent, heard) = attempt(HELLO, injects, secure).await;
    assert!(matches!(sent, Err(NotifyError::SaidBeforeTls)), "{sent:?}");
    assert_eq!(heard, ["EHLO collector.example.org", "STARTTLS"]);
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let long: &'static str = Box::leak("250-x\r\n".repeat(1_000).into_boxed_str());
    let script: &'static [(&str, &str)] = Box::leak(Box::new([("EHLO", long)]));
    assert!(matches!(attempt(HELLO, script, |_| ()).await.0, Err(NotifyError::NoSmtp { uncertain: false })));
    let long: &'static str = Box::leak(format!("250 {}", "x".repeat(100_000)).into_boxed_str());
    let script: &'static [(&str, &str)] = Box::leak(Box::new([("EHLO", long)]));
    assert!(matches!(attempt(HELLO, script, |_| ()).await.0, Err(NotifyError::NoSmtp { uncertain: false })));
}
