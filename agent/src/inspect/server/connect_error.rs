//! Why a server gives the agent no session, in words that hold for every kind of server.

use super::Engine;
use crate::inspect::Reason;

/// Why there is no session. Texts name the server and the role, never a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("{server}: the name has no address: {said}")]
    Resolve {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What the resolver said.
        said: String,
    },
    /// The network or the kernel refused.
    #[error("{server}: {said}")]
    Unreachable {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What the kernel said.
        said: String,
    },
    /// Nobody answered, or not to the end.
    #[error("{server}: no session within {seconds:.0} s")]
    Timeout {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// There was a session, and it gave no answer.
    #[error("{server}: no answer within {seconds:.0} s")]
    Silent {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// The certificate is not trusted, or there is no TLS where it was demanded.
    #[error("{server}: TLS: {said}")]
    Tls {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// `expired`, `unknown issuer`, `server does not support TLS`.
        said: String,
    },
    /// The role may not log in like this: password, `pg_hba.conf`, no such role or database.
    #[error("{server}: {said}")]
    Login {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What the server said.
        said: String,
    },
    /// SQLSTATE 53300: no slot is free, of the server or of the role or database alone.
    #[error("{server}: {said}")]
    TooManyClients {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What the server said.
        said: String,
        /// All slots of the server are taken, not only those of our role or database.
        of_server: bool,
    },
    /// The server answered that it serves nobody: it starts, stops or recovers.
    #[error("{server}: {said}")]
    NotServing {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What the server said.
        said: String,
    },
    /// The session itself is not as the server would have it: a setting in `options`, or a pooler that takes none.
    #[error("{server}: {said}")]
    Settings {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What the server said.
        said: String,
    },
    /// What answers there speaks another protocol.
    #[error("{server}: what answers is not {}", engine.name())]
    Foreign {
        /// Its kind and place: `PostgreSQL at 10.0.0.5:5432`.
        server: String,
        /// What should have answered.
        engine: Engine,
    },
}

impl ConnectError {
    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "check the host in the DSN and the resolver of this host",
            Self::Unreachable { .. } => {
                "check that the server runs, that it listens there, and that no firewall refuses"
            }
            Self::Timeout { .. } | Self::Silent { .. } => {
                "check the network between here and the server, and the server's load"
            }
            Self::Tls { .. } => {
                "check the server's certificate, and what the DSN says of TLS (sslmode and sslrootcert, ssl-mode and ssl-ca, ssl_ca_certs)"
            }
            Self::Login { .. } => {
                "check user, password and database in the DSN, and whom the server lets in from here (pg_hba.conf, grants, ACLs)"
            }
            Self::TooManyClients { of_server: true, .. } => {
                "find who holds the connections; raise the server's limit only after that"
            }
            Self::TooManyClients { .. } => "raise the connection limit of the agent's role or database",
            Self::NotServing { .. } => "look into the server's log: it starts, stops or recovers",
            Self::Settings { .. } => {
                "check options in the DSN; where a pooler answers, name the server behind it, which knows the sessions"
            }
            Self::Foreign { .. } => "check host and port in the DSN",
        }
    }

    /// Whether the agent's own credentials or settings are at fault: the server is there, and others may be served well.
    pub const fn is_our_fault(&self) -> bool {
        matches!(self, Self::Login { .. } | Self::Tls { .. } | Self::Settings { .. })
    }

    /// Why nothing is known of the server.
    pub fn reason(&self) -> Reason {
        match self {
            _ if self.is_our_fault() => Reason::Refused(self.to_string()),
            Self::Foreign { .. } => Reason::Malformed(self.to_string()),
            _ => Reason::Unreachable(self.to_string()),
        }
    }
}
