//! A wire between an agent and its collector that a scenario holds in its hand: cut it, keep the answers back, reset it in
//! the middle of a message, or make it long.
//!
//! It carries TLS and reads none of it. What it sees from outside is enough: after the handshake an answer of the
//! collector is written only when it has committed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::stage::StageError;

/// What the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Carries both ways.
    Whole,
    /// Ends every connection at once.
    Cut,
    /// Carries what the agent says, and keeps back what the collector answers on connections that are open now.
    Mute,
    /// Carries so many bytes more of what the agent says on connections that are open now, and resets them.
    ResetsRequest(u64),
    /// The same of what the collector answers.
    ResetsAnswer(u64),
    /// Carries both ways, each so late.
    Late(Duration),
}

#[derive(Debug)]
struct State {
    wire: Wire,
    open: Vec<Arc<Pair>>,
    accepted: u64,
    /// Connections before this one were open when the wire became what it is.
    open_before: u64,
    /// Bytes of answers kept back since then.
    kept_back: u64,
    /// Bytes of the agent that were carried since then.
    carried: u64,
    /// Connections reset since then.
    resets: u64,
}

/// Both ends of a connection. Its sockets are closed when the last of its threads lets go of it.
#[derive(Debug)]
struct Pair {
    number: u64,
    agent: TcpStream,
    collector: TcpStream,
    is_reset: AtomicBool,
}

impl Pair {
    fn ends(&self, is_reset: bool) {
        let was_reset = self.is_reset.fetch_or(is_reset, Ordering::Relaxed);
        for socket in [&self.agent, &self.collector] {
            if is_reset {
                // Closed with this, it resets (socket(7)); the readers are woken, and nothing is said.
                let _ = set_socket_linger(socket, Some(Duration::ZERO));
                let _ = socket.shutdown(Shutdown::Read);
            } else if !was_reset {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Which way something is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// What becomes of a piece.
enum Fate {
    Carried,
    KeptBack,
    /// So much of it is carried, then the connection is reset.
    Reset(usize),
}

impl State {
    fn judge(&mut self, way: Way, number: u64, bytes: usize) -> Fate {
        let was_open = number <= self.open_before;
        let carried = match (&mut self.wire, way) {
            (Wire::Mute, Way::Down) if was_open => {
                self.kept_back += bytes as u64;
                return Fate::KeptBack;
            }
            (Wire::ResetsRequest(left), Way::Up) | (Wire::ResetsAnswer(left), Way::Down) if was_open => {
                let carried = (*left).min(bytes as u64);
                *left -= carried;
                carried
            }
            _ => bytes as u64,
        };
        if way == Way::Up {
            self.carried += carried;
        }
        if carried == bytes as u64 {
            return Fate::Carried;
        }
        self.resets += 1;
        Fate::Reset(carried as usize)
    }

    const fn lateness(&self) -> Duration {
        if let Wire::Late(by) = self.wire { by } else { Duration::ZERO }
    }
}

/// The wire: a listener on a free port.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Relay {
    /// Leads from 127.0.0.1 to `target` until the process ends.
    pub fn start(target: SocketAddr) -> Result<Self, StageError> {
        Self::start_at("127.0.0.1", target)
    }

    /// The same from this address of ours: whoever is on another host comes by it.
    pub fn start_at(near: &str, target: SocketAddr) -> Result<Self, StageError> {
        let listener = TcpListener::bind((near, 0)).map_err(StageError::system("bind a free port"))?;
        let address = listener.local_addr().map_err(StageError::system("read the port"))?;
        let (wire, open) = (Wire::Whole, Vec::new());
        let state = State { wire, open, accepted: 0, open_before: 0, kept_back: 0, carried: 0, resets: 0 };
        let it = Self { address, state: Arc::new(Mutex::new(state)) };
        let state = it.state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connect(stream, target, &state);
            }
        });
        Ok(it)
    }

    /// Where the agent is to go: `https://127.0.0.1:41235`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Changes what it does, for connections that are open too.
    pub fn becomes(&self, wire: Wire) {
        let mut state = lock(&self.state);
        let was_mute = state.wire == Wire::Mute;
        state.wire = wire;
        state.open_before = state.accepted;
        (state.kept_back, state.carried, state.resets) = (0, 0, 0);
        // What was kept back cannot be given back in time: whoever waits for it connects anew.
        if was_mute || wire == Wire::Cut {
            for pair in state.open.drain(..) {
                pair.ends(false);
            }
        }
    }

    /// Bytes of answers that were kept back since the wire went mute.
    pub fn kept_back(&self) -> u64 {
        lock(&self.state).kept_back
    }

    /// Bytes of the agent that reached the collector since the last change.
    pub fn carried(&self) -> u64 {
        lock(&self.state).carried
    }

    /// Connections that were reset since the last change.
    pub fn resets(&self) -> u64 {
        lock(&self.state).resets
    }
}

fn connect(agent: TcpStream, target: SocketAddr, state: &Arc<Mutex<State>>) {
    if lock(state).wire == Wire::Cut {
        return; // closed with this
    }
    let Ok(collector) = TcpStream::connect(target) else { return };
    let pair = {
        let mut state = lock(state);
        state.accepted += 1;
        let pair = Arc::new(Pair { number: state.accepted, agent, collector, is_reset: AtomicBool::new(false) });
        state.open.push(pair.clone());
        pair
    };
    for way in [Way::Up, Way::Down] {
        let (sender, queue) = channel();
        let (pair, writer) = (pair.clone(), pair.clone());
        thread::spawn(move || deliver(&writer, way, &queue));
        let state = state.clone();
        thread::spawn(move || {
            let mut from = if way == Way::Up { &pair.agent } else { &pair.collector };
            let mut piece = vec![0; 64 << 10];
            while let Ok(bytes @ 1..) = from.read(&mut piece) {
                let (fate, late) = {
                    let mut state = lock(&state);
                    (state.judge(way, pair.number, bytes), state.lateness())
                };
                let (whole, length) = match fate {
                    Fate::Carried => (true, bytes),
                    Fate::KeptBack => continue,
                    Fate::Reset(length) => (false, length),
                };
                let is_sent = sender.send((Instant::now() + late, piece[..length].to_vec(), whole)).is_ok();
                if !is_sent || !whole {
                    break;
                }
            }
            lock(&state).open.retain(|it| it.number != pair.number);
        });
    }
}

/// Writes each piece when it is due; the last one may be a part, after which the connection is reset.
fn deliver(pair: &Pair, way: Way, queue: &Receiver<(Instant, Vec<u8>, bool)>) {
    let mut to = if way == Way::Up { &pair.collector } else { &pair.agent };
    while let Ok((due, piece, whole)) = queue.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let written = to.write_all(&piece);
        if !whole {
            return pair.ends(true);
        }
        if written.is_err() {
            break;
        }
    }
    pair.ends(false);
}

fn lock(mutex: &Mutex<State>) -> MutexGuard<'_, State> {
    // A thread that panicked while it held it has failed the scenario already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{Seconds, until};

    #[test]
    fn carries_keeps_back_and_cuts() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let relay = Relay::start(listener.local_addr().expect("bound")).expect("started");
        let mut near = TcpStream::connect(relay.address).expect("connected");
        let (mut far, _) = listener.accept().expect("accepted");
        let mut word = [0; 4];
        near.write_all(b"ping").expect("written");
        far.read_exact(&mut word).expect("carried");
        far.write_all(b"pong").expect("written");
        near.read_exact(&mut word).expect("carried back");
        assert_eq!(&word, b"pong");
        relay.becomes(Wire::Mute);
        far.write_all(b"pong").expect("written");
        until("the answer is kept back", 10.s(), || match relay.kept_back() {
            4 => Ok(()),
            other => Err(other.to_string()),
        })
        .expect("kept back");
        relay.becomes(Wire::Cut);
        assert_eq!(near.read(&mut word).unwrap_or(0), 0, "it is closed");
    }

    #[test]
    fn resets_in_the_middle_of_a_message_and_is_late() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let relay = Relay::start(listener.local_addr().expect("bound")).expect("started");
        let near = || TcpStream::connect(relay.address).expect("connected");
        let mut agent = near();
        let (mut far, _) = listener.accept().expect("accepted");
        let mut word = [0; 4];
        agent.write_all(b"ping").expect("written");
        far.read_exact(&mut word).expect("carried");
        relay.becomes(Wire::ResetsAnswer(2));
        far.write_all(b"pong").expect("written");
        let end = |socket: &mut TcpStream| socket.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        // A reset may take what came just before it along.
        assert_eq!(end(&mut agent), Err(std::io::ErrorKind::ConnectionReset));
        assert_eq!(end(&mut far), Err(std::io::ErrorKind::ConnectionReset));
        assert_eq!(relay.resets(), 1);
        relay.becomes(Wire::Late(Duration::from_millis(40)));
        let mut agent = near();
        let began = Instant::now();
        agent.write_all(b"ping").expect("written");
        let (mut far, _) = listener.accept().expect("accepted");
        far.read_exact(&mut word).expect("carried");
        assert!(began.elapsed() >= Duration::from_millis(40));
    }
}
