//! How long a connection may get nowhere: a path that lost its packets must not be noticed only by its repeats, whose
//! pauses double.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// What was sent and not acknowledged for so long ends the connection, and so does a peer that answers no probe. Below a
/// heartbeat: after a cut of any length the next attempt is less than one away.
const UNHEARD: Duration = Duration::from_secs(8);
/// A connection that is quiet for so long is probed: while an answer is waited for that was lost, nothing else is sent.
/// A heartbeat comes after ten seconds, so a healthy connection is probed a few times between two; one probe may be lost.
const QUIET: Duration = Duration::from_secs(4);
/// Between two probes.
const PROBES: Duration = Duration::from_secs(2);

/// Bounds what the kernel bears in silence (tcp(7): `TCP_USER_TIMEOUT`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`).
pub(super) fn bound(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_user_timeout(&socket, UNHEARD.as_millis() as u32)?;
    sockopt::set_tcp_keepidle(&socket, QUIET)?;
    sockopt::set_tcp_keepintvl(&socket, PROBES)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_silent_connection_ends_before_a_heartbeat_is_over() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        bound(&socket).expect("taken");
        assert_eq!(sockopt::tcp_user_timeout(&socket), Ok(8_000));
        assert_eq!(sockopt::socket_keepalive(&socket), Ok(true));
        let between = sockopt::tcp_keepintvl(&socket).expect("readable");
        let probed = sockopt::tcp_keepidle(&socket).expect("readable") + 2 * between;
        assert_eq!(probed, UNHEARD, "the third probe finds that the two before it were not answered");
    }
}
