//! A wire between an agent and its collector that a scenario holds in its hand: cut it, or keep the answers back.
//!
//! It carries TLS and reads none of it. What it sees from outside is enough: after the handshake an answer of the
//! collector is written only when it has committed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

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
}

#[derive(Debug)]
struct State {
    wire: Wire,
    open: Vec<TcpStream>,
    accepted: u64,
    /// Connections before this one were open when the wire went mute.
    muted_before: u64,
    /// Bytes of answers kept back since then.
    kept_back: u64,
    /// Bytes of the agent that were carried since the last change.
    carried: u64,
}

/// The wire: a listener on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Relay {
    /// Leads to `target` until the process ends.
    pub fn start(target: SocketAddr) -> Result<Self, StageError> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(StageError::system("bind a free port"))?;
        let port = listener.local_addr().map_err(StageError::system("read the port"))?.port();
        let state =
            State { wire: Wire::Whole, open: Vec::new(), accepted: 0, muted_before: 0, kept_back: 0, carried: 0 };
        let it = Self { port, state: Arc::new(Mutex::new(state)) };
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
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Changes what it does, for connections that are open too.
    pub fn becomes(&self, wire: Wire) {
        let mut state = lock(&self.state);
        state.wire = wire;
        (state.muted_before, state.kept_back, state.carried) = (state.accepted, 0, 0);
        if wire == Wire::Mute {
            return; // they stay open, and end with the next change
        }
        // What was kept back cannot be given back in time: whoever waits for it connects anew.
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
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
}

fn connect(agent: TcpStream, target: SocketAddr, state: &Arc<Mutex<State>>) {
    if lock(state).wire == Wire::Cut {
        return; // closed with this
    }
    let Ok(collector) = TcpStream::connect(target) else { return };
    let (Ok(agent_too), Ok(collector_too), Ok(ours), Ok(ours_too)) =
        (agent.try_clone(), collector.try_clone(), agent.try_clone(), collector.try_clone())
    else {
        return;
    };
    let number = {
        let mut state = lock(state);
        state.accepted += 1;
        state.open.extend([ours, ours_too]);
        state.accepted
    };
    let (up, down) = (state.clone(), state.clone());
    thread::spawn(move || {
        carry(agent, collector_too, |bytes| {
            lock(&up).carried += bytes;
            true
        });
    });
    thread::spawn(move || {
        carry(collector, agent_too, |bytes| {
            let mut state = lock(&down);
            let is_mute = state.wire == Wire::Mute && number <= state.muted_before;
            if is_mute {
                state.kept_back += bytes;
            }
            !is_mute
        });
    });
}

/// Copies until either end is closed; `pass` decides on each piece.
fn carry(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(u64) -> bool) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut piece) {
        if pass(bytes as u64) && to.write_all(&piece[..bytes]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
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
        let mut near = TcpStream::connect(("127.0.0.1", relay.port)).expect("connected");
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
}
