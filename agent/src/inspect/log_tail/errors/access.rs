//! Requests that were answered with 5xx, in lines of access logs and in structured records. Pure.

use serde_json::{Map, Value as Json};

use super::{MAX_MESSAGE, Raised, normal};

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
/// Where structured records hold the status of an answer,
const STATUS: [&str; 6] = ["status", "status_code", "statusCode", "http_status", "http.status_code", "response_status"];
/// or have a record that does.
const ANSWERS: [&str; 4] = ["response", "res", "http", "httpRequest"];
/// And where they hold the request. Without one a status may be anything's.
const PATHS: [&str; 7] = ["path", "url", "uri", "request_uri", "route", "http.target", "requestUrl"];
const METHOD: [&str; 4] = ["method", "request_method", "http.method", "requestMethod"];
const REQUESTS: [&str; 4] = ["request", "req", "http", "httpRequest"];

/// `"GET /orders HTTP/1.1" 500`: the first quoted text of uvicorn's lines and of the combined format.
pub(super) fn of_line(line: &str) -> Option<Raised> {
    let (_, quoted) = line.split_once('"')?;
    let (request, rest) = quoted.split_once('"')?;
    let (method, rest_of_request) = request.split_once(' ')?;
    let (target, protocol) = rest_of_request.rsplit_once(' ')?;
    let is_request = METHODS.contains(&method) && protocol.starts_with("HTTP/");
    let status = rest.strip_prefix(' ')?.split(' ').next()?;
    is_request.then(|| raised(method, target, status.parse().ok()?)).flatten()
}

/// A structured record that has a request and the status of its answer.
pub(super) fn of_record(record: &Map<String, Json>) -> Option<Raised> {
    let inner = |keys: &[&str]| keys.iter().filter_map(|key| record.get(*key)?.as_object()).collect::<Vec<_>>();
    let text = |keys: &[&str], records: &[&Map<String, Json>]| {
        let mut all = records.iter().flat_map(|record| keys.iter().filter_map(|key| record.get(*key)?.as_str()));
        all.next().map(str::to_owned)
    };
    let requests = [vec![record], inner(&REQUESTS)].concat();
    let (path, method) = (text(&PATHS, &requests), text(&METHOD, &requests));
    if path.is_none() && method.is_none() {
        return None;
    }
    let answers = [vec![record], inner(&ANSWERS)].concat();
    let mut all = answers.iter().flat_map(|record| STATUS.iter().filter_map(|key| record.get(*key)));
    let status = all.find_map(|it| it.as_u64().or_else(|| it.as_str()?.parse().ok()))?;
    // A whole URL may stand there.
    let path = path.unwrap_or_default();
    let path = path.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or(&path);
    raised(method.as_deref().unwrap_or("request"), path, u16::try_from(status).ok()?)
}

fn raised(method: &str, target: &str, status: u16) -> Option<Raised> {
    if !(500..=599).contains(&status) {
        return None;
    }
    let message = format!("{} {}", normal::name(method, 16), normal::path(target, MAX_MESSAGE - 20));
    Some(Raised::new(&format!("HTTP {status}"), message, String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Option<String> {
        let found = match serde_json::from_str::<Json>(line) {
            Ok(Json::Object(record)) => of_record(&record),
            _ => of_line(line),
        };
        found.map(|it| format!("{}: {}", it.kind, it.message))
    }

    #[test]
    fn answers_with_5xx_are_found_as_servers_write_them() {
        for (line, expected) in [
            (
                r#"INFO:     127.0.0.1:40022 - "GET /orders/17?token=canary HTTP/1.1" 500 Internal Server Error"#,
                "HTTP 500: GET /orders/#",
            ),
            (
                r#"10.0.0.9 - - [21/Nov/2026:02:00:00 +0000] "POST /api/v2/pay HTTP/2.0" 502 157 "-" "curl/8.5""#,
                "HTTP 502: POST /api/v2/pay",
            ),
            (r#"{"method":"GET","path":"/orders/17","status":503}"#, "HTTP 503: GET /orders/#"),
            (r#"{"req":{"method":"GET","url":"/a?b=c"},"res":{"statusCode":500},"msg":"x"}"#, "HTTP 500: GET /a"),
            (r#"{"uri":"https://shop.example/a/1","status":"504"}"#, "HTTP 504: request /a/#"),
        ] {
            assert_eq!(told(line).as_deref(), Some(expected), "{line}");
        }
    }

    #[test]
    fn other_answers_and_other_numbers_are_none() {
        for line in [
            r#"INFO:     127.0.0.1:40022 - "GET /orders HTTP/1.1" 200 OK"#,
            r#"10.0.0.9 - - [x] "GET /500 HTTP/1.1" 404 500 "-" "GET /x HTTP/1.1" 500"#,
            r#"retries "GET" 500 times"#,
            r#"{"status":500,"msg":"rows were read"}"#,
            r#"{"path":"/a","status":200,"duration":500}"#,
            r#"{"path":"/a","status":5000}"#,
            "\"\"",
        ] {
            assert_eq!(told(line), None, "{line}");
        }
    }
}
