//! A web server whose answers are good or bad by chance, so that an agent which asks it has much to tell.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::network::Far;
use crate::stage::StageError;

/// A server on a free port of 127.0.0.1. It begins moody.
#[derive(Debug)]
pub struct Moody {
    port: u16,
    is_well: Arc<AtomicBool>,
}

impl Moody {
    /// Listens until the process ends.
    pub fn start() -> Result<Self, StageError> {
        Self::listening(TcpListener::bind(("127.0.0.1", 0)))
    }

    /// The same on another host.
    pub fn start_on(host: &Far) -> Result<Self, StageError> {
        Self::listening(host.within(|| TcpListener::bind(("127.0.0.1", 0)))?)
    }

    fn listening(listener: io::Result<TcpListener>) -> Result<Self, StageError> {
        let listener = listener.map_err(StageError::system("bind a free port"))?;
        let port = listener.local_addr().map_err(StageError::system("read the port"))?.port();
        let it = Self { port, is_well: Arc::default() };
        let is_well = it.is_well.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let is_well = is_well.clone();
                thread::spawn(move || converse(&stream, &is_well));
            }
        });
        Ok(it)
    }

    /// From now on every answer is good.
    pub fn recovers(&self) {
        self.is_well.store(true, Ordering::Relaxed);
    }

    /// Sections of an agent's configuration that ask it at so many paths, each once a second.
    pub fn endpoints(&self, count: usize) -> String {
        let section =
            |path| format!("[[endpoint]]\nurl = \"http://127.0.0.1:{}/{path}\"\ninterval = \"1s\"\n", self.port);
        (0..count).map(section).collect()
    }
}

fn converse(stream: &TcpStream, is_well: &AtomicBool) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            if !reader.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                return;
            }
        }
        let is_good = is_well.load(Ordering::Relaxed) || RandomState::new().hash_one(()).is_multiple_of(2);
        let status = if is_good { "200 OK" } else { "500 Internal Server Error" };
        let mut answer = stream;
        if write!(answer, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}
