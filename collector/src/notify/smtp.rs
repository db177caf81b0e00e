//! A conversation with a mail server (RFC 5321), bounded in what is read, and exact about when the letter may have been heard.
//!
//! What a server said before TLS counts for nothing after it: words that came in the clear behind the answer to STARTTLS would
//! else be taken for its own (RFC 3207, section 5). Nothing but EHLO and STARTTLS is said in the clear where TLS is asked for.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::connect::{Place, Tls};
use super::{NotifyError, Phase};

/// Bytes of one line; RFC 5321 asks for 512.
const LONGEST_LINE: usize = 4 << 10;
/// Lines of one answer.
const MOST_LINES: usize = 100;
/// How long a server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The connection.
    Greeting,
    /// EHLO.
    Hello,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Login,
    /// MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA, before the letter.
    Data,
    /// The letter itself.
    Letter,
}

impl Step {
    /// As it is told in an error.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Greeting => "the connection",
            Self::Hello => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Login => "the login",
            Self::Sender => "the sender",
            Self::Recipient => "a recipient",
            Self::Data => "DATA",
            Self::Letter => "the letter",
        }
    }
}

/// What bytes go over.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<W: AsyncRead + AsyncWrite + Send + Unpin> Wire for W {}

struct Reply {
    code: u16,
    /// Its texts, by line.
    lines: Vec<String>,
}

/// One connection.
pub(super) struct Session<'p> {
    wire: Box<dyn Wire>,
    /// What was read and not yet looked at.
    heard: Vec<u8>,
    /// What the server can do, in capitals.
    offers: Vec<String>,
    phase: &'p mut Phase,
}

impl<'p> Session<'p> {
    /// Listens to the greeting and introduces itself.
    pub(super) async fn open(
        wire: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        hello: &str,
        phase: &'p mut Phase,
    ) -> Result<Self, NotifyError> {
        let mut it = Self { wire: Box::new(wire), heard: Vec::new(), offers: Vec::new(), phase };
        let greeting = it.reply().await?;
        expect(&greeting, 2, Step::Greeting)?;
        it.introduce(hello).await?;
        Ok(it)
    }

    /// Goes on over TLS, or not at all.
    pub(super) async fn start_tls(self, tls: &Tls, place: &Place, hello: &str) -> Result<Self, NotifyError> {
        let mut it = self;
        if !it.offers.iter().any(|offer| offer == "STARTTLS") {
            it.quit().await;
            return Err(NotifyError::NoStartTls);
        }
        it.ask("STARTTLS", 2, Step::StartTls).await?;
        if !it.heard.is_empty() {
            return Err(NotifyError::SaidBeforeTls);
        }
        let wire = tls.connect(it.wire, place).await?;
        let mut it = Self { wire: Box::new(wire), heard: Vec::new(), offers: Vec::new(), phase: it.phase };
        it.introduce(hello).await?;
        Ok(it)
    }

    async fn introduce(&mut self, hello: &str) -> Result<(), NotifyError> {
        let reply = self.ask(&format!("EHLO {hello}"), 2, Step::Hello).await?;
        self.offers = reply.lines.into_iter().skip(1).map(|it| it.to_ascii_uppercase()).collect();
        Ok(())
    }

    /// Tells a name and a password.
    pub(super) async fn log_in(&mut self, user: &str, password: &str) -> Result<(), NotifyError> {
        let encoded = |text: &str| Zeroizing::new(STANDARD.encode(text));
        // Some write `AUTH=` for clients of long ago.
        let mut ways = self.offers.iter().filter_map(|it| it.strip_prefix("AUTH")).flat_map(|it| it.split([' ', '=']));
        let ways = (ways.clone().any(|it| it == "PLAIN"), ways.any(|it| it == "LOGIN"));
        match ways {
            (true, _) => {
                let both = Zeroizing::new(format!("\0{user}\0{password}"));
                let command = Zeroizing::new(format!("AUTH PLAIN {}", *encoded(&both)));
                self.ask(&command, 2, Step::Login).await.map(drop)
            }
            (false, true) => {
                self.ask("AUTH LOGIN", 3, Step::Login).await?;
                self.ask(&encoded(user), 3, Step::Login).await?;
                self.ask(&encoded(password), 2, Step::Login).await.map(drop)
            }
            (false, false) => Err(NotifyError::NoLogin),
        }
    }

    /// Sends one letter to those who take it; gives the code of the yes, and none where nobody did. Into `refused` come the others, by their
    /// place, and by what code.
    pub(super) async fn send(
        &mut self,
        from: &str,
        to: &[String],
        letter: &[u8],
        refused: &mut Vec<(usize, u16)>,
    ) -> Result<Option<u16>, NotifyError> {
        self.ask(&format!("MAIL FROM:<{from}>"), 2, Step::Sender).await?;
        for (index, address) in to.iter().enumerate() {
            match self.ask(&format!("RCPT TO:<{address}>"), 2, Step::Recipient).await {
                Ok(_) => (),
                Err(NotifyError::Said { code, .. }) => refused.push((index, code)),
                Err(error) => return Err(error),
            }
        }
        if refused.len() == to.len() {
            return Ok(None);
        }
        self.ask("DATA", 3, Step::Data).await?;
        let lines = transparent(letter);
        self.say(&lines).await?;
        // From here on the letter may be whole there, and the answer lost.
        *self.phase = Phase::Sent;
        self.say(b".\r\n").await?;
        let reply = self.reply().await?;
        *self.phase = if reply.code / 100 == 2 { Phase::Taken(reply.code) } else { Phase::Connecting };
        expect(&reply, 2, Step::Letter)?;
        Ok(Some(reply.code))
    }

    /// Says goodbye, and waits a moment for the answer, so that the server need not note a broken connection.
    pub(super) async fn quit(&mut self) {
        let goodbye = async {
            self.say(b"QUIT\r\n").await?;
            self.reply().await
        };
        // Whatever comes of it, the letter's outcome is known.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }

    async fn ask(&mut self, command: &str, wanted: u16, step: Step) -> Result<Reply, NotifyError> {
        let line = Zeroizing::new(format!("{command}\r\n"));
        self.say(line.as_bytes()).await?;
        let reply = self.reply().await?;
        expect(&reply, wanted, step)?;
        Ok(reply)
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), NotifyError> {
        let said = async {
            self.wire.write_all(bytes).await?;
            self.wire.flush().await
        };
        said.await.map_err(|source| NotifyError::Ended { source, uncertain: *self.phase == Phase::Sent })
    }

    async fn reply(&mut self) -> Result<Reply, NotifyError> {
        let mut lines = Vec::new();
        while lines.len() < MOST_LINES {
            let line = self.line().await?;
            let (code, text) = line.split_at_checked(3).ok_or_else(|| self.no_smtp())?;
            let code: u16 = code.parse().ok().filter(|it| (200..600).contains(it)).ok_or_else(|| self.no_smtp())?;
            lines.push(text.get(1..).unwrap_or_default().to_owned());
            if !text.starts_with('-') {
                return Ok(Reply { code, lines });
            }
        }
        Err(self.no_smtp())
    }

    async fn line(&mut self) -> Result<String, NotifyError> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.heard.len() > LONGEST_LINE {
                return Err(self.no_smtp());
            }
            let mut piece = [0; 1024];
            let uncertain = *self.phase == Phase::Sent;
            let ended = |source| NotifyError::Ended { source, uncertain };
            match self.wire.read(&mut piece).await.map_err(ended)? {
                0 => return Err(ended(io::ErrorKind::UnexpectedEof.into())),
                read => self.heard.extend_from_slice(&piece[..read]),
            }
        }
    }

    fn no_smtp(&self) -> NotifyError {
        NotifyError::NoSmtp { uncertain: *self.phase == Phase::Sent }
    }
}

/// Fails with what was said unless it is of the wanted class.
fn expect(reply: &Reply, wanted: u16, step: Step) -> Result<(), NotifyError> {
    if reply.code / 100 == wanted { Ok(()) } else { Err(NotifyError::Said { step, code: reply.code }) }
}

/// Lines as DATA takes them: each ended by CRLF, none of them a lone dot, and no line end that only some would see.
fn transparent(letter: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(letter.len() + 64);
    let letter = letter.strip_suffix(b"\n").unwrap_or(letter);
    for line in letter.split(|byte| *byte == b'\n') {
        if line.first() == Some(&b'.') {
            lines.push(b'.');
        }
        lines.extend(line.iter().filter(|byte| **byte != b'\r'));
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs in to a server that offers so much and answers so, and gives what it heard.
    async fn log_in(offers: &str, answers: &[&str]) -> (Result<(), NotifyError>, Vec<String>) {
        let (near, far) = tokio::io::duplex(1024);
        let said = ["220 mail\r\n", &format!("250-mail\r\n250 {offers}\r\n"), &answers.concat()].concat();
        let (mut reading, mut writing) = tokio::io::split(far);
        writing.write_all(said.as_bytes()).await.expect("fits");
        let mut phase = Phase::Connecting;
        let result = {
            let mut session = Session::open(near, "collector", &mut phase).await.expect("greets");
            session.log_in("tickbird", "s3cret").await
        };
        let mut heard = String::new();
        reading.read_to_string(&mut heard).await.expect("text");
        (result, heard.lines().skip(1).map(str::to_owned).collect())
    }

    /// Computed with `printf '\0tickbird\0s3cret' | base64`, and of each word alone.
    #[tokio::test]
    async fn a_password_is_told_in_the_way_that_the_server_knows() {
        let plain = "AUTH PLAIN AHRpY2tiaXJkAHMzY3JldA==";
        let (result, heard) = log_in("AUTH LOGIN PLAIN CRAM-MD5", &["235 well\r\n"]).await;
        assert!(result.is_ok() && heard == [plain], "{result:?} {heard:?}");
        let (result, heard) = log_in("AUTH=LOGIN", &["334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n235 well\r\n"]).await;
        assert!(result.is_ok() && heard == ["AUTH LOGIN", "dGlja2JpcmQ=", "czNjcmV0"], "{result:?} {heard:?}");
        let (result, _) = log_in("AUTH PLAIN", &["535 no\r\n"]).await;
        assert!(matches!(result, Err(NotifyError::Said { step: Step::Login, code: 535 })), "{result:?}");
        let (result, heard) = log_in("AUTH GSSAPI", &[]).await;
        assert!(matches!(result, Err(NotifyError::NoLogin)) && heard.is_empty(), "{result:?} {heard:?}");
    }

    #[test]
    fn lines_end_as_they_must_and_no_dot_stands_alone() {
        assert_eq!(transparent(b"a\r\n.\r\nb\n..c\rd"), b"a\r\n..\r\nb\r\n...cd\r\n");
        assert_eq!(transparent(b""), b"\r\n");
    }
}
