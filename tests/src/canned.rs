//! A web server that answers what it was told to, byte by byte.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::stage::StageError;

/// A server on a free port of 127.0.0.1, until the process ends.
#[derive(Debug)]
pub struct Canned {
    port: u16,
}

impl Canned {
    /// Answers a request whose path begins with the first text by the second, and closes; others by nothing.
    pub fn start(answers: Vec<(&'static str, String)>) -> Result<Self, StageError> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(StageError::system("bind a free port"))?;
        let port = listener.local_addr().map_err(StageError::system("read the port"))?.port();
        let answers = Arc::new(answers);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answers = answers.clone();
                thread::spawn(move || converse(&stream, &answers));
            }
        });
        Ok(Self { port })
    }

    /// `127.0.0.1:41234`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// A page with this status line's end, these further lines of its head, and this body.
pub fn page(status: &str, head: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn converse(mut stream: &TcpStream, answers: &[(&str, String)]) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|it| it.split(' ').nth(1).map(str::to_owned)) else { return };
    // The whole head, so that closing resets nothing.
    if lines.any(|it| it.is_empty())
        && let Some((_, answer)) = answers.iter().find(|(prefix, _)| path.starts_with(prefix))
    {
        // Who asked and went away wants no answer.
        let _ = stream.write_all(answer.as_bytes());
    }
}
