//! Callers of a web server: requests that stay unanswered as long as the server likes, and streams that never end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::stage::StageError;
use crate::wait::Seconds;

/// Requests that were sent, each on a connection of its own.
#[derive(Debug)]
pub struct Requests {
    open: Vec<TcpStream>,
}

impl Requests {
    /// Sends `count` requests for `path`, and waits for no answer.
    pub fn send(port: u16, path: &str, count: usize) -> Result<Self, StageError> {
        let open: Result<_, _> = (0..count).map(|_| ask(port, path)).collect();
        Ok(Self { open: open? })
    }

    /// Waits until each of them is answered.
    ///
    /// # Errors
    /// When one is not within 30 s, or with something else than 200.
    pub fn are_answered(self) -> Result<(), StageError> {
        for mut stream in self.open {
            let head = begin_of_answer(&mut stream)?;
            if !head.starts_with("HTTP/1.1 200") {
                return Err(StageError::Malformed { what: "the answer of a request".into(), found: head });
            }
        }
        Ok(())
    }
}

/// WebSockets that send something now and then and are never answered.
#[derive(Debug)]
pub struct Streams {
    stop: Option<Sender<()>>,
    talk: Option<JoinHandle<()>>,
}

impl Streams {
    /// Opens `count` of them on `path`; they send every `pause`.
    pub fn open(port: u16, path: &str, count: usize, pause: Duration) -> Result<Self, StageError> {
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = ask(port, path)?;
            let head = begin_of_answer(&mut stream)?;
            if !head.starts_with("HTTP/1.1 101") {
                return Err(StageError::Malformed { what: "the answer of a stream".into(), found: head });
            }
            open.push(stream);
        }
        let (stop, stopped) = channel::<()>();
        let talk = std::thread::spawn(move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                // A masked text frame of five bytes. A server that is gone shows in the scenario itself.
                let _ = open.iter_mut().try_for_each(|it| it.write_all(b"\x81\x85mask12345"));
            }
        });
        Ok(Self { stop: Some(stop), talk: Some(talk) })
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(talk) = self.talk.take() {
            let _ = talk.join();
        }
    }
}

fn ask(port: u16, path: &str) -> Result<TcpStream, StageError> {
    let failed = || StageError::system(format!("ask for {path}"));
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(failed())?;
    stream.set_read_timeout(Some(30.s())).map_err(failed())?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed())?;
    Ok(stream)
}

/// One request to `port` on 127.0.0.1, and all that is answered: head and body.
pub fn exchange(port: u16, method: &str, path: &str) -> Result<String, StageError> {
    let failed = || StageError::system(format!("{method} {path}"));
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(failed())?;
    stream.set_read_timeout(Some(30.s())).map_err(failed())?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed())?;
    Ok(text)
}

/// At least the status line.
fn begin_of_answer(stream: &mut TcpStream) -> Result<String, StageError> {
    let mut bytes = [0; 1024];
    let length = stream.read(&mut bytes).map_err(StageError::system("read an answer"))?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}
