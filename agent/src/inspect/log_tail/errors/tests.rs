//! Errors as applications write them.

use super::*;
use proptest::prelude::*;

/// What a log says, one line each: `ValueError: bad # (main.py handler)`; a consequence takes its cause's place.
fn told(log: &str) -> Vec<String> {
    let mut reader = Reader::default();
    let mut all = Vec::new();
    for (index, line) in log.lines().filter(|it| !it.is_empty()).enumerate() {
        let Some(read) = reader.line(line, Duration::from_secs(index as u64)) else { continue };
        if read.is_consequence {
            all.pop();
        }
        let Raised { kind, message, place, .. } = read.occurrence.raised;
        all.push(format!("{kind}: {message} ({place})"));
    }
    all
}

const TRACEBACK: &str = r#"2026-11-21 02:00:00,123 ERROR shop: 500 /orders
Traceback (most recent call last):
  File "/app/shop/main.py", line 10, in create_order
    session.execute(text("INSERT INTO orders VALUES ('canary')"))
  File "/usr/lib/python3/dist-packages/sqlalchemy/orm/session.py", line 1955, in execute
    return self._execute_internal(
           ^^^^^^^^^^^^^^^^^^^^^^^
sqlalchemy.exc.IntegrityError: (psycopg2.errors.UniqueViolation) key 4711 "orders_pkey" is taken
[SQL: INSERT INTO orders VALUES ('canary')]"#;

#[test]
fn a_traceback_is_its_last_line_and_the_innermost_frame_of_the_application() {
    let expected =
        "sqlalchemy.exc.IntegrityError: (psycopg2.errors.UniqueViolation) key # ? is taken (main.py create_order)";
    assert_eq!(told(TRACEBACK), [expected]);
    let mut reader = Reader::default();
    let read = TRACEBACK.lines().find_map(|it| reader.line(it, Duration::from_secs(7))).expect("an error");
    let written = read.occurrence.written.expect("the time of the line above it");
    assert_eq!(written.at.to_string(), "2026-11-21T02:00:00.123Z");
    assert_eq!(read.occurrence.since, Duration::from_secs(7));
}

#[test]
fn another_occurrence_has_the_same_fingerprint_and_another_error_has_not() {
    let fingerprint = |log: &str| {
        let mut reader = Reader::default();
        let read = log.lines().find_map(|it| reader.line(it, Duration::ZERO)).expect("an error");
        read.occurrence.raised.fingerprint
    };
    let again = TRACEBACK.replace("4711", "12").replace("orders_pkey", "other").replace("line 10", "line 12");
    assert_eq!(fingerprint(TRACEBACK), fingerprint(&again));
    assert_ne!(fingerprint(TRACEBACK), fingerprint(&TRACEBACK.replace("is taken", "is missing")));
    assert_ne!(fingerprint(TRACEBACK), fingerprint(&TRACEBACK.replace("create_order", "pay")));
}

#[test]
fn a_chain_is_one_error_and_its_last() {
    let chain = r#"ERROR:    Exception in ASGI application
Traceback (most recent call last):
  File "/app/main.py", line 10, in load
    x = rows["a"]
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/main.py", line 20, in handler
    load()
RuntimeError: no orders
INFO:     127.0.0.1:40022 - "GET /orders HTTP/1.1" 500 Internal Server Error"#;
    assert_eq!(told(chain), ["RuntimeError: no orders (main.py handler)", "HTTP 500: GET /orders ()"]);
}

#[test]
fn prefixes_groups_and_lines_of_other_processes_do_not_hide_a_traceback() {
    let prefixed = "web-1  | Traceback (most recent call last):\nweb-1  |   File \"/a/m.py\", line 1, in f\nworker-1  | INFO: ok\nweb-1  | ValueError: x";
    assert_eq!(told(prefixed), ["ValueError: x (m.py f)"]);
    let once = "2026-11-21 02:00:00 ERROR Traceback (most recent call last):\n  File \"/a/m.py\", line 1, in f\nINFO:     listening\nasyncio.exceptions.CancelledError";
    assert_eq!(told(once), ["asyncio.exceptions.CancelledError:  (m.py f)"]);
    let group = "  + Exception Group Traceback (most recent call last):\n  |   File \"/a/m.py\", line 1, in f\n  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n  +-+---------------- 1 ----------------\n    | Traceback (most recent call last):\n    |   File \"/a/m.py\", line 2, in g\n    | ValueError: y\n    +------------------------------------";
    assert_eq!(
        told(group),
        ["ExceptionGroup: unhandled errors in a TaskGroup (# sub-exception) (m.py f)", "ValueError: y (m.py g)"]
    );
}

#[test]
fn stacks_of_java_node_and_go_are_errors() {
    let java = "2026-11-21 02:00:00.123 ERROR [http-1] c.s.Orders - failed\njava.lang.IllegalStateException: order 17 is closed\n\tat com.shop.Orders.close(Orders.java:42)\n\tat com.shop.Main.main(Main.java:1)\nCaused by: java.io.IOException: gone\n\tat com.shop.Disk.read(Disk.java:2)\n\t... 3 more";
    assert_eq!(told(java), ["java.lang.IllegalStateException: order # is closed (com.shop.Orders.close)"]);
    let thread = "Exception in thread \"main\" java.lang.OutOfMemoryError\n\tat com.shop.Main.main(Main.java:1)";
    assert_eq!(told(thread), ["java.lang.OutOfMemoryError:  (com.shop.Main.main)"]);
    let node = "/app/main.js:3\n    throw new Error('canary')\n    ^\n\nTypeError: Cannot read properties of undefined (reading 'id')\n    at handler (/app/main.js:3:11)\n    at Layer.handle (/app/node_modules/express/lib/router/layer.js:95:5)";
    assert_eq!(told(node), ["TypeError: Cannot read properties of undefined (reading ?) (handler)"]);
    let go = "2026/11/21 02:00:00 http: panic serving 127.0.0.1:40022: runtime error: index out of range [5] with length 3\ngoroutine 34 [running]:\nnet/http.(*conn).serve.func1()\n\t/usr/lib/go/src/net/http/server.go:1868 +0xb0";
    assert_eq!(told(go), ["panic: runtime error: index out of range [#] with length # ()"]);
    assert_eq!(told("panic: boom\n\ngoroutine 1 [running]:\nmain.main()"), ["panic: boom ()"]);
}

#[test]
fn a_structured_record_holds_its_traceback_in_one_text() {
    let record = r#"{"ts":1795226400.25,"level":"error","msg":"failed","exc_info":"Traceback (most recent call last):\n  File \"/a/m.py\", line 1, in f\nValueError: bad 17","path":"/a","status":500}"#;
    assert_eq!(told(record), ["ValueError: bad # (m.py f)"]);
    let nested = r#"{"err":{"type":"Error","stack":"Error: bad 17\n    at f (/a/m.js:1:2)"},"level":50}"#;
    assert_eq!(told(nested), ["Error: bad # (f)"]);
}

#[test]
fn what_only_speaks_of_an_error_is_none() {
    for log in [
        "INFO a ValueError: was handled\nINFO next",
        "java.lang.IllegalStateException: handled\nINFO   at once (by itself)",
        "panic: no goroutine follows",
        "Traceback (most recent call last): is what Python writes\nValueError: x",
        "goroutine 34 [running]:",
        "    at handler (/app/main.js:3:11)",
        r#"{"msg":"Traceback (most recent call last):","status":200}"#,
    ] {
        assert_eq!(told(log), Vec::<String>::new(), "{log}");
    }
    let lost = format!("Traceback (most recent call last):\n{}ValueError: x", "INFO: other\n".repeat(30));
    assert_eq!(told(&lost), Vec::<String>::new());
}

proptest! {
    #[test]
    fn no_log_panics_and_what_is_kept_is_bounded(lines in proptest::collection::vec(
        proptest::collection::vec(
            prop_oneof![
                "\\PC{0,8}",
                "[a-zA-Z.]{100,300}",
                proptest::sample::select(vec![
                    "Traceback (most recent call last):", "Exception Group ", "  File \"", "\", line ", ", in ", "\n", "  | ",
                    "Error", ": ", "\tat ", "(", "goroutine ", "1", " [", "panic: ", "panic serving ", "{\"ts\":", "\"",
                    "\"GET ", " HTTP/1.1\" 500", "2026-11-21 02:00:00", ",", "9", "+", "é", "'", "Caused by: ", "}",
                    "During handling of the above exception, another exception occurred",
                ]).prop_map(str::to_owned),
            ],
            0..8,
        ).prop_map(|it| it.concat()),
        0..12,
    )) {
        let mut reader = Reader::default();
        for line in &lines {
            if let Some(read) = reader.line(line, Duration::ZERO) {
                let Raised { kind, message, place, fingerprint } = read.occurrence.raised;
                prop_assert!(kind.len() <= MAX_KIND && message.len() <= MAX_MESSAGE && place.len() <= MAX_PLACE);
                prop_assert_eq!(fingerprint.len(), 16);
            }
        }
    }
}
