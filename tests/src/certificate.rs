//! Certificates for the web servers that an agent looks at, made by the openssl command.

use std::path::PathBuf;
use std::process::Command;

use crate::process::{installed, run};
use crate::stage::{Stage, StageError};

/// A self-signed certificate for 127.0.0.1 and its key; it is its own authority.
#[derive(Debug)]
pub struct Certificate {
    /// PEM, also for `ca_file`.
    pub chain: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// A certificate that ends `days` from now.
    pub fn ending_in(stage: &Stage, days: u32) -> Result<Self, StageError> {
        let openssl = installed("/usr/bin/openssl", "openssl")?;
        let room = stage.room("certificate")?;
        let it = Self { chain: room.join("chain.pem"), key: room.join("key.pem") };
        let mut command = Command::new(openssl);
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        command.args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE", "-days", &days.to_string()]);
        run(command.arg("-keyout").arg(&it.key).arg("-out").arg(&it.chain))?;
        Ok(it)
    }
}
