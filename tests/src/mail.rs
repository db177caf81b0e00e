//! A private mail server: Exim on a port of its own, with STARTTLS and passwords, that delivers into one Maildir.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::certificate::Certificate;
use crate::postgres::{Owner, free_port};
use crate::process::{Running, installed, last_lines};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

const PACKAGE: &str = "exim4-daemon-light";
/// Who may send.
pub const USER: &str = "tickbird";
/// And by what.
pub const PASSWORD: &str = "P4SS-of-the-mail-server";

/// What a server does instead of taking a letter; each is a file that its configuration looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whim {
    /// 451 to each recipient, as greylisting does.
    Defers,
    /// 452 to the recipient `nobody@example.org`, as of a mailbox that is full.
    HasNoRoomForOne,
    /// 550 to the recipient `nobody@example.org`.
    KnowsNobody,
    /// 550 to each recipient.
    RefusesAll,
    /// 554 to each letter that it has read.
    RefusesLetters,
    /// It does not offer STARTTLS.
    OffersNoTls,
    /// It thinks for some seconds over each letter that it has read.
    Thinks,
}

impl Whim {
    const fn file(self) -> &'static str {
        match self {
            Self::Defers => "defers",
            Self::HasNoRoomForOne => "has-no-room-for-one",
            Self::KnowsNobody => "knows-nobody",
            Self::RefusesAll => "refuses-all",
            Self::RefusesLetters => "refuses-letters",
            Self::OffersNoTls => "offers-no-tls",
            Self::Thinks => "thinks",
        }
    }
}

/// A letter as it lies in the mailbox.
#[derive(Debug, Clone)]
pub struct Letter {
    head: Vec<(String, String)>,
    /// What stands below the head.
    pub body: String,
}

impl Letter {
    fn read(text: &str) -> Self {
        let text = text.replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        // A line that begins with a blank goes on with the one before.
        let unfolded = head.replace("\n ", " ").replace("\n\t", " ");
        let of = |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
        Self { head: unfolded.lines().filter_map(of).collect(), body: body.to_owned() }
    }

    /// The first header of a name; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.head.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// The server. Dropped, it is asked to end.
#[derive(Debug)]
pub struct MailServer {
    room: PathBuf,
    port: u16,
    owner: Owner,
    process: Option<Running>,
}

impl MailServer {
    /// Starts a server on a free port of 127.0.0.1 with this certificate.
    ///
    /// # Errors
    /// When Exim is not installed, or will not start: then with the end of its log.
    pub fn start(stage: &Stage, certificate: &Certificate) -> Result<Self, StageError> {
        let (room, port, owner) = (stage.room("mail")?, free_port()?, Owner::of_servers()?);
        std::fs::create_dir(room.join("spool")).map_err(StageError::system("make a spool"))?;
        owner.give(&room)?;
        owner.give(&room.join("spool"))?;
        let mut it = Self { room, port, owner, process: None };
        it.shows(certificate)?;
        it.runs()?;
        Ok(it)
    }

    /// Shows this certificate from its next start on.
    pub fn shows(&self, certificate: &Certificate) -> Result<(), StageError> {
        for (from, to) in [(&certificate.chain, "server.crt"), (&certificate.key, "server.key")] {
            let to = self.room.join(to);
            std::fs::copy(from, &to).map_err(StageError::system("give the server its certificate"))?;
            self.owner.give(&to)?;
        }
        Ok(())
    }

    /// Starts it, on the same port and with its mailbox, after [`Self::ends`].
    pub fn runs(&mut self) -> Result<(), StageError> {
        let file = self.room.join("exim.conf");
        std::fs::write(&file, self.configuration()).map_err(StageError::system("write the server's configuration"))?;
        let log = self.room.join("log");
        let mut command = self.owner.command(&installed("/usr/sbin/exim4", PACKAGE)?);
        command.arg("-C").arg(&file).arg("-bdf").stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running::start("exim", &mut command, &log)?;
        until("Exim answers", 10.s(), || {
            process.alive()?;
            let open = TcpStream::connect(("127.0.0.1", self.port));
            open.map(drop).map_err(|error| format!("{error}: {}", last_lines(&log, 5)))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it; letters in its mailbox stay.
    pub fn ends(&mut self) -> Result<(), StageError> {
        self.process.take().map_or(Ok(()), |mut it| it.stop().map(drop))
    }

    /// Where it listens: `127.0.0.1:41235`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Has a whim from now on, or no longer.
    pub fn has(&self, whim: Whim, is_so: bool) -> Result<(), StageError> {
        let file = self.room.join(whim.file());
        let done = if is_so { std::fs::write(&file, "") } else { std::fs::remove_file(&file) };
        done.map_err(StageError::system("change the server's mind"))
    }

    /// What it wrote into its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.room.join("spool/mainlog")).unwrap_or_default()
    }

    /// The letters in its mailbox, in the order of their files.
    pub fn letters(&self) -> Vec<Letter> {
        let Ok(entries) = std::fs::read_dir(self.room.join("spool/mail/new")) else { return Vec::new() };
        let mut files: Vec<_> = entries.flatten().map(|it| it.path()).collect();
        files.sort();
        let read = |file: &PathBuf| std::fs::read_to_string(file).ok();
        files.iter().filter_map(read).map(|text| Letter::read(&text)).collect()
    }

    /// Waits for a letter that `wanted` likes.
    pub fn gets(&self, what: &str, within: Duration, wanted: impl Fn(&Letter) -> bool) -> Result<Letter, StageError> {
        until(format!("a letter {what}"), within, || {
            let letters = self.letters();
            let found = letters.iter().find(|it| wanted(it)).cloned();
            let subjects = || letters.iter().map(|it| it.header("subject")).collect::<Vec<_>>().join(", ");
            found.ok_or_else(|| format!("{} letters: {}; {}", letters.len(), subjects(), end(&self.log())))
        })
    }

    fn configuration(&self) -> String {
        // Who is not its own user may not let it serve.
        let (user, group) = self.owner.user_and_group();
        CONFIGURATION
            .replace("OWNER", &user.to_string())
            .replace("GROUP", &group.to_string())
            .replace("PORT", &self.port.to_string())
            .replace("USER", USER)
            .replace("PASSWORD", PASSWORD)
            .replace("ROOM", &self.room.display().to_string())
    }
}

fn end(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Never asks a name server, has one mailbox, and takes letters of whoever logged in over TLS.
const CONFIGURATION: &str = r"
exim_user = OWNER
exim_group = GROUP
primary_hostname = mail.example.org
spool_directory = ROOM/spool
log_file_path = ROOM/spool/%slog
pid_file_path = ROOM/spool/pid
daemon_smtp_ports = PORT
local_interfaces = 127.0.0.1
deliver_drop_privilege = true
keep_environment =
add_environment =
host_lookup =
rfc1413_query_timeout = 0s
tls_certificate = ROOM/server.crt
tls_privatekey = ROOM/server.key
tls_advertise_hosts = ${if exists{ROOM/offers-no-tls}{}{*}}
auth_advertise_hosts = ${if eq{$tls_in_cipher}{}{}{*}}
acl_smtp_rcpt = recipient
acl_smtp_data = letter

begin acl
recipient:
  deny  !authenticated = *
        message = 5.7.1 log in first
  defer condition = ${if exists{ROOM/defers}}
        message = 4.7.1 come back later
  defer condition = ${if exists{ROOM/has-no-room-for-one}}
        local_parts = nobody
        message = 452 4.2.2 the mailbox is full
  deny  condition = ${if exists{ROOM/refuses-all}}
        message = 5.1.1 nobody is known here
  deny  condition = ${if exists{ROOM/knows-nobody}}
        local_parts = nobody
        message = 5.1.1 nobody is not known here
  accept
letter:
  deny  condition = ${if exists{ROOM/refuses-letters}}
        message = 5.6.0 what a letter
  warn  condition = ${if exists{ROOM/thinks}}
        logwrite = :main: a letter was read
        delay = 3s
  accept

begin routers
here:
  driver = accept
  transport = mailbox

begin transports
mailbox:
  driver = appendfile
  directory = ROOM/spool/mail
  maildir_format
  create_directory
  envelope_to_add
  batch_max = 100

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{USER}}{eq{$auth3}{PASSWORD}}}}
  server_set_id = $auth2
";
