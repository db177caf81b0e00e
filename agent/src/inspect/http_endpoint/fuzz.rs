//! What is asked of an endpoint and what it answers, under any bytes.

use super::expectation::{Config, EndpointUrl, Options};

/// Lines of a configuration (URL, statuses, pattern, JSON pointer), then the body.
pub(crate) fn endpoint(data: &[u8]) {
    let mut parts = data.splitn(5, |it| *it == b'\n');
    let mut line = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (url, status, pattern, pointer) = (line(), line(), line(), line());
    let body = parts.next().unwrap_or_default();
    if let Ok(it) = EndpointUrl::parse(&url) {
        assert!(it.to_string().len() <= 300);
        assert_eq!(EndpointUrl::parse(&url).ok(), Some(it));
    }
    let options = Options {
        url: "http://127.0.0.1/".to_owned(),
        status: Some(status),
        body_matches: Some(pattern),
        json: vec![(pointer, serde_json::Value::from(1))],
        timeout: std::time::Duration::from_secs(1),
        ca_file: None,
    };
    match Config::new(options) {
        Ok(config) => {
            for is_whole in [true, false] {
                let checked = config.assertions.check(body, is_whole);
                assert!(checked.len() == 2 && checked.iter().all(|it| it.asserted.len() <= 120));
            }
            assert!(!config.status.contains(99));
        }
        Err(mistakes) => assert!(mistakes.len() <= 4 && mistakes.iter().all(|it| it.to_string().len() <= 1024)),
    }
}
