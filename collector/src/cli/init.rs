//! `init`: a new collector in an empty directory.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tickbird_shared::units::parse_duration;

use super::{CliError, Where, now};
use crate::pki::Lives;

/// Makes a new collector in an empty directory.
///
/// Makes a certificate authority, a server certificate, a configuration, a store, an administrator's token for the API
/// and a first enrolment token. Both tokens are printed once and kept only as hashes.
#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    at: Where,
    /// Where agents will connect to; port 0 lets the system choose at each start.
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7443)))]
    listen_agents: SocketAddr,
    /// Where people and programs will connect to, and where agents enrol.
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7444)))]
    listen_people: SocketAddr,
    /// A host name or address by which this host is reached; may be given again. The first is what agents are told.
    /// This host's own name, localhost, 127.0.0.1 and ::1 are added.
    #[arg(long = "name", value_name = "HOSTNAME_OR_IP")]
    names: Vec<String>,
    /// How long the certificate authority lives; it has a successor after two thirds of that.
    #[arg(long, value_name = "DURATION", default_value = "3650d", value_parser = parse_duration)]
    authority_life: Duration,
}

impl Init {
    pub(super) fn run(self) -> Result<(), CliError> {
        let directory = self.at.directory();
        let names = self.all_names();
        let lives = Lives { authority: self.authority_life, ..Lives::default() };
        let created = directory.create(&names, &self.configuration(&names), lives, now())?;
        let (agents, people) = (self.listen_agents, self.listen_people);
        let (dir, ca) = (directory.path().display().to_string(), directory.authority().display().to_string());
        let json = json!({
            "dir": dir,
            "agents_address": agents.to_string(),
            "people_address": people.to_string(),
            "ca": ca,
            "admin_token": created.admin_token,
            "enrolment_token": created.enrolment_token,
        });
        self.at.print(&json, || {
            format!(
                "A new collector is in {dir}\n\n\
                 \u{20} agents will connect to   {agents}\n\
                 \u{20} people will connect to   {people}\n\
                 \u{20} authority to trust       {ca}\n\n\
                 These two are shown only now:\n\n\
                 \u{20} API token (admin)        {}\n\
                 \u{20} enrolment token          {}\n\
                 \u{20}                          (100 agents, for 24 hours; more with `token create`)\n\n\
                 Next: tickbird-collector serve --dir {dir}\n",
                created.admin_token, created.enrolment_token
            )
        })
    }

    fn all_names(&self) -> Vec<String> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let added = [host, "localhost".into(), "127.0.0.1".into(), "::1".into()];
        let mut names = self.names.clone();
        names.extend(added.into_iter().filter(|name| !self.names.contains(name)));
        names
    }

    fn configuration(&self, names: &[String]) -> String {
        let (agents, people) = (self.listen_agents, self.listen_people);
        let url = match (agents.port(), names.first()) {
            // A port that changes cannot be written down; enrolment tells agents the port of the day.
            (0, _) | (_, None) => String::new(),
            (port, Some(name)) => match name.parse::<IpAddr>() {
                Ok(IpAddr::V6(ip)) => format!("url = \"https://[{ip}]:{port}\"\n"),
                _ => format!("url = \"https://{name}:{port}\"\n"),
            },
        };
        let authority = match self.authority_life.as_secs() {
            days if days % 86_400 == 0 => format!("{}d", days / 86_400),
            seconds => format!("{seconds}s"),
        };
        format!(
            "# Every key is optional; `tickbird-collector check-config` reports every mistake at once.\n\
             name = \"collector\"\n\n\
             # Where agents send their records, with a certificate from enrolment; url is what enrolment tells them.\n\
             [agents]\n\
             listen = \"{agents}\"\n\
             {url}\n\
             # Where people and programs ask, and where agents enrol.\n\
             [people]\n\
             listen = \"{people}\"\n\n\
             # What comes first, time or bytes, deletes the oldest. What fires or waits is never deleted.\n\
             [retention]\n\
             findings = \"30d\"\n\
             incidents = \"365d\"\n\
             summaries = \"7d\"\n\
             bytes = \"10GiB\"\n\n\
             # How long certificates live; each is renewed at two thirds of it.\n\
             [certificates]\n\
             agent = \"30d\"\n\
             server = \"825d\"\n\
             authority = \"{authority}\"\n\n\
             # Who is told:\n\
             # [[receiver]]\n\
             # name = \"ops\"\n\
             # webhook.url = \"https://hooks.example.org/tickbird\"\n\
             # webhook.secret_file = \"ops.secret\"   # whsec_ and base64, to sign with\n\
             # min_severity = \"warning\"\n"
        )
    }
}
