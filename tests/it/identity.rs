//! Certificates over their life: renewed, ended, denied, and followed by those of another authority.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tickbird_tests::agent::app;
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::https::{Answer, Client, Connection};
use tickbird_tests::process::{installed, run};
use tickbird_tests::wait::{Paced, paced};
use tickbird_tests::{Agent, Application, Collector, Seconds, Stage, StageError, Watch, Webhook, alone, until};

/// A watch whose certificates live so long: of agents, of the server, of the authority.
fn short_lived(stage: &Stage, configuration: &str, lives: [&str; 3]) -> Result<Watch, StageError> {
    let [agent, server, authority] = lives;
    let webhook = Webhook::start(stage)?;
    let mut collector = Collector::init_with(stage, &["--authority-life", authority])?;
    collector.rewrite("agent = \"30d\"", &format!("agent = \"{agent}\""))?;
    collector.rewrite("server = \"825d\"", &format!("server = \"{server}\""))?;
    collector.configure(&receiver(&webhook))?;
    collector.serve()?;
    let agent = Agent::running(stage, &collector, configuration)?;
    Ok(Watch { webhook, collector, agent })
}

/// Waits until the collector says this of the agent, which runs.
fn presence(watch: &Watch, wanted: &str, within: Duration) -> Result<(), StageError> {
    let id = watch.agent.status()?["agent"]["id"].clone();
    until(format!("the agent is {wanted}"), within, || {
        let agents = watch.collector.items("agents", "").map_err(|error| error.to_string())?;
        let found = agents.iter().find(|it| it["id"] == id).map_or(Value::Null, |it| it["presence"].clone());
        if found == wanted { Ok(()) } else { Err(found.to_string()) }
    })
}

fn renewals(watch: &Watch) -> Result<u64, StageError> {
    let status = watch.agent.status()?;
    Ok(status["agent"]["collector"]["counts"]["certificate"]["renewals"].as_u64().unwrap_or_default())
}

/// The agent's certificate is renewed every few seconds, the server's several times, and the authority has a successor
/// and ends: every finding arrives, once, in one unbroken life of the buffer, and nobody calls the agent missing.
#[test]
fn certificates_and_their_authority_are_replaced_under_load_without_a_gap() {
    const CHECK: &str = "fd.limit";
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        web.does("limit 100")?;
        let watch = short_lived(stage, &app("shop", &web.command()), ["12s", "40s", "120s"])?;
        let first = authorities(&watch.agent.identity("ca.pem"))?;
        assert_eq!(first.len(), 1);
        watch.sees(CHECK, "process:shop", "ok", 30.s())?;

        let (mut faults, mut is_bad, mut seen_both) = (0, false, false);
        let mut newest = first.clone();
        // The first authority ends 120 s after `init`.
        paced(Duration::from_secs(1), 220.s(), || {
            let status = watch.agent.status()?;
            let findings = status["findings"].as_array().cloned().unwrap_or_default();
            if findings.iter().any(|it| it["check"] == CHECK) == is_bad {
                web.does(if is_bad { "release" } else { "descriptors 80" })?;
                faults += usize::from(!is_bad);
                is_bad = !is_bad;
            }
            assert!(findings.iter().all(|it| it["check"] != "agent.certificate"), "{}", status["findings"]);
            let agents = watch.collector.items("agents", "")?;
            assert_eq!(agents[0]["presence"], "live", "{agents:?}");
            newest = authorities(&watch.agent.identity("ca.pem"))?;
            seen_both |= newest.len() == 2;
            let is_over = newest.len() == 1 && newest != first;
            Ok(if is_over && !is_bad { Paced::Enough } else { Paced::More })
        })?;
        assert!(seen_both, "for a while the agent trusts both");
        assert!(newest.len() == 1 && newest != first, "then the next one alone: {newest:?}");
        assert!(renewals(&watch)? >= 10, "{}", watch.agent.status()?["agent"]);
        assert!(faults >= 3, "there was something to tell: {faults}");

        until("every fault has arrived and ended", 60.s(), || {
            let found = watch.collector.items("findings", "check=fd.limit").map_err(|error| error.to_string())?;
            let of = |change: &str| found.iter().filter(|it| it["change"] == change).count();
            if of("began") == faults && of("cleared") == faults { Ok(()) } else { Err(titles(&found)) }
        })?;
        for name in ["tickbird_records_refused", "tickbird_records_lost"] {
            assert_eq!(watch.collector.counted(name)?, 0, "{name}");
        }
        let stat = watch.agent.status()?["agent"]["buffer"].clone();
        for lane in stat["lanes"].as_array().expect("lanes") {
            assert_eq!(
                (&lane["evicted"], &lane["refused"], &lane["quarantined"]),
                (&json!(0), &json!(0), &json!(0)),
                "{lane}"
            );
        }
        let incidents = watch.collector.items("incidents", "")?;
        let of_identity =
            ["agent.missing", "agent.certificate", "agent.loss", "agent.cloned_identity", "collector.certificate"];
        let is_fault = |it: &Value| of_identity.iter().any(|check| it["check"] == *check);
        assert!(!incidents.iter().any(is_fault), "{}", titles(&incidents));
        assert_eq!(watch.collector.get_as("/readyz", None)?.json()?["status"], "ok");
        Ok(())
    });
}

/// The certificates of a bundle, each by its text.
fn authorities(path: &Path) -> Result<Vec<String>, StageError> {
    let text = std::fs::read_to_string(path).map_err(StageError::system("read what the agent trusts"))?;
    let mut all: Vec<String> = text.split("-----BEGIN CERTIFICATE-----").skip(1).map(str::to_owned).collect();
    all.sort();
    Ok(all)
}

/// A request for the renewal of the agent's own key, by openssl, and what the collector answers to it.
fn renew(watch: &Watch, as_agent: &Client, key: &Path, room: &Path) -> Result<Answer, StageError> {
    let openssl = installed("/usr/bin/openssl", "openssl")?;
    let csr = room.join("csr.pem");
    let mut request = std::process::Command::new(openssl);
    run(request.args(["req", "-new", "-subj", "/CN=whoever", "-key"]).arg(key).arg("-out").arg(&csr))?;
    let csr = std::fs::read_to_string(csr).map_err(StageError::system("read the request"))?;
    let body = json!({ "csr": csr }).to_string();
    as_agent.connect(watch.collector.agents())?.ask("POST", "/v1/renew", "", body.as_bytes())
}

/// An empty batch of an epoch of its own.
fn heartbeat() -> Vec<u8> {
    let batch = json!({
        "protocol": 1, "epoch": "01JD7Z5W0000000000000000AA", "lane": "urgent", "first": 1,
        "sent_at": "2026-11-20T10:00:00Z", "records": [],
    });
    batch.to_string().into_bytes()
}

/// An open connection that was served once. The agent has one too, and a third is refused while an earlier one still ends.
fn seated(as_agent: &Client, address: &str) -> Result<Connection, StageError> {
    until("there is a seat", 10.s(), || {
        let mut open = as_agent.connect(address).map_err(|error| error.to_string())?;
        let answer = open.ask("POST", "/v1/records", "", &heartbeat()).map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(open) } else { Err(answer.body) }
    })
}

#[test]
fn a_denied_agent_is_cut_off_within_five_seconds_and_gets_neither_in_nor_a_new_certificate() {
    alone(|stage| {
        let watch = Watch::begin(stage, "")?;
        presence(&watch, "live", 20.s())?;
        let id = watch.agent.status()?["agent"]["id"].as_str().unwrap_or_default().to_owned();
        let [ca, chain, key] = ["ca.pem", "agent.pem", "agent.key"].map(|it| watch.agent.identity(it));
        let as_agent = Client::as_agent(&ca, &chain, &key)?;
        let room = stage.room("renewal")?;
        assert_eq!(renew(&watch, &as_agent, &key, &room)?.status, 200, "not denied yet");

        let mut open = seated(&as_agent, watch.collector.agents())?;
        watch.collector.command(&["agent", "deny", &id])?;
        open.ended(5.s())?;
        let refused = as_agent.connect(watch.collector.agents())?.ask("POST", "/v1/records", "", &heartbeat())?;
        assert_eq!((refused.status, &refused.json()?["code"]), (403, &json!("denied")));
        let refused = renew(&watch, &as_agent, &key, &room)?;
        assert_eq!((refused.status, &refused.json()?["code"]), (403, &json!("denied")));
        until("the agent says that it is denied", 30.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let error = status["agent"]["collector"]["error"].as_str().unwrap_or_default().to_owned();
            if error.contains("denies this agent") { Ok(()) } else { Err(error) }
        })
    });
}

#[test]
fn an_agent_that_was_off_beyond_the_end_of_its_certificate_renews_it_and_goes_on() {
    alone(|stage| {
        let mut watch = short_lived(stage, "", ["8s", "825d", "3650d"])?;
        presence(&watch, "live", 20.s())?;
        let id = watch.agent.status()?["agent"]["id"].clone();
        watch.agent.stop()?;
        let openssl = installed("/usr/bin/openssl", "openssl")?;
        let certificate = watch.agent.identity("agent.pem");
        until("the certificate has ended", 20.s(), || {
            let mut check = std::process::Command::new(&openssl);
            let ended = run(check.args(["x509", "-noout", "-checkend", "0", "-in"]).arg(&certificate)).is_err();
            if ended { Ok(()) } else { Err("it lasts".to_owned()) }
        })?;
        let [ca, key] = ["ca.pem", "agent.key"].map(|it| watch.agent.identity(it));
        let as_agent = Client::as_agent(&ca, &certificate, &key)?;
        let refused = as_agent.connect(watch.collector.agents())?.ask("POST", "/v1/records", "", &heartbeat())?;
        assert_eq!((refused.status, &refused.json()?["code"]), (403, &json!("certificate_ended")));

        watch.agent.run()?;
        presence(&watch, "live", 20.s())?;
        assert_eq!(watch.agent.status()?["agent"]["id"], id, "it is the same agent");
        assert!(renewals(&watch)? >= 1);
        let agents = watch.collector.items("agents", "")?;
        assert_eq!(agents.len(), 1, "{agents:?}");
        Ok(())
    });
}

/// An authority made by openssl, which signs for whom it is asked.
struct Pki {
    room: PathBuf,
}

impl Pki {
    fn found(stage: &Stage) -> Result<Self, StageError> {
        let it = Self { room: stage.room("pki")? };
        it.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "3",
            "-subj",
            "/CN=Example authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ])?;
        Ok(it)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.join(name)
    }

    /// A new key and a certificate for this subject and these names, put in the place of `<file>.key` and `<file>.pem`.
    fn signs(&self, file: &str, subject: &str, names: &str) -> Result<(), StageError> {
        let [key, csr, pem, extensions] = ["key", "csr", "pem", "ext"].map(|it| format!("{file}.new.{it}"));
        std::fs::write(self.path(&extensions), format!("subjectAltName={names}\n"))
            .map_err(StageError::system("write the extensions"))?;
        self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &csr,
        ])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &pem,
        ])?;
        for kind in ["key", "pem"] {
            std::fs::rename(self.path(&format!("{file}.new.{kind}")), self.path(&format!("{file}.{kind}")))
                .map_err(StageError::system("put the certificate in its place"))?;
        }
        Ok(())
    }

    fn openssl(&self, arguments: &[&str]) -> Result<(), StageError> {
        let openssl = installed("/usr/bin/openssl", "openssl")?;
        run(std::process::Command::new(openssl).args(arguments).current_dir(&self.room)).map(drop)
    }
}

/// What a server shows, as openssl reads it: the serial number of its certificate.
fn serial(address: &str, pki: &Pki) -> Result<String, String> {
    let script = format!(
        "openssl s_client -connect {address} -CAfile {} -cert {} -key {} < /dev/null 2>&1 | openssl x509 -noout -serial",
        pki.path("ca.pem").display(),
        pki.path("agent.pem").display(),
        pki.path("agent.key").display()
    );
    run(std::process::Command::new("/bin/sh").args(["-c", &script])).map_err(|error| error.to_string())
}

/// Everything is signed by an authority that is not ours, and replaced while records flow.
#[test]
fn certificates_of_another_authority_serve_and_are_swapped_while_connections_stand() {
    alone(|stage| {
        let pki = Pki::found(stage)?;
        pki.signs("server", "/CN=whatever", "IP:127.0.0.1")?;
        pki.signs("agent", "/CN=web-1", "DNS:web-1.example.org")?;
        let [ca, server, server_key, agent, agent_key] =
            ["ca.pem", "server.pem", "server.key", "agent.pem", "agent.key"].map(|it| pki.path(it));
        let files = format!(
            "certificate_file = \"{}\"\nkey_file = \"{}\"\nca_file = \"{}\"\n",
            server.display(),
            server_key.display(),
            ca.display()
        );
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        let of_agents = format!("[agents]\n{files}client_ca_file = \"{}\"\nclient_name = \"cn\"\n", ca.display());
        collector.rewrite("[agents]\n", &of_agents)?;
        collector.rewrite("[people]\n", &format!("[people]\n{files}"))?;
        collector.configure(&receiver(&webhook))?;
        collector.trust(&ca);
        collector.serve()?;
        let mut process = Agent::prepare(
            stage,
            &format!(
                "[collector]\nurl = \"https://{}\"\nagent = \"web-1\"\ncertificate_file = \"{}\"\n\
                 key_file = \"{}\"\nca_file = \"{}\"\n",
                collector.agents(),
                agent.display(),
                agent_key.display(),
                ca.display()
            ),
            tickbird_tests::agent::User::Same,
        )?;
        process.run()?;
        let watch = Watch { webhook, collector, agent: process };
        presence(&watch, "live", 20.s())?;
        let agents = watch.collector.items("agents", "")?;
        assert_eq!((agents.len(), &agents[0]["id"]), (1, &json!("web-1")), "{agents:?}");
        assert!(watch.collector.items("incidents", "")?.is_empty());

        // One that is enrolled is known by our own authority, through the same listeners.
        let token = watch.collector.command(&["token", "create"])?;
        let enrolled = Agent::prepare(stage, "", tickbird_tests::agent::User::Same)?;
        enrolled.enrol_with(&watch.collector, token.trim())?;
        let trusted = authorities(&enrolled.identity("ca.pem"))?;
        assert_eq!(trusted.len(), 2, "the foreign one and ours");

        // The server's files change under an open connection.
        let address = watch.collector.agents().to_owned();
        let before = serial(&address, &pki).map_err(|said| StageError::Failed { what: "openssl".into(), said })?;
        let client = Client::as_agent(&ca, &agent, &agent_key)?;
        let mut open = seated(&client, &address)?;
        pki.signs("server", "/CN=whatever", "IP:127.0.0.1")?;
        let after = until("the new certificate is shown", 20.s(), || {
            serial(&address, &pki).and_then(|it| if it == before { Err(it) } else { Ok(it) })
        })?;
        assert_eq!(open.ask("POST", "/v1/records", "", &heartbeat())?.status, 200, "the open connection stands");

        // A bad file is refused, said, and the old one goes on.
        let good = std::fs::read(&server).map_err(StageError::system("read the certificate"))?;
        std::fs::write(&server, "no certificate").map_err(StageError::system("spoil the certificate"))?;
        until("the collector says so", 20.s(), || {
            let answer = watch.collector.get_as("/readyz", None).map_err(|error| error.to_string())?;
            if answer.body.contains("degraded") { Ok(()) } else { Err(answer.body) }
        })?;
        let log = watch.collector.log();
        assert!(log.contains("server.pem") && log.contains("does not hold certificates in PEM"), "{log}");
        assert_eq!(serial(&address, &pki).map_err(|said| StageError::Failed { what: "openssl".into(), said })?, after);
        std::fs::write(&server, good).map_err(StageError::system("mend the certificate"))?;
        until("all is well", 20.s(), || {
            let answer = watch.collector.get_as("/readyz", None).map_err(|error| error.to_string())?;
            if answer.body.contains("degraded") { Err(answer.body) } else { Ok(()) }
        })?;

        // The agent's own files change, too; then the collector hears it by the new one.
        drop(open);
        pki.signs("agent", "/CN=web-1", "DNS:web-1.example.org")?;
        until("the agent has taken it over", 30.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let counts = status["agent"]["collector"]["counts"]["certificate"].clone();
            if counts["renewals"] == 1 { Ok(()) } else { Err(counts.to_string()) }
        })?;
        presence(&watch, "live", 10.s())?;
        // A name that is not the agent's own is refused before anything is lost by it.
        pki.signs("agent", "/CN=web-2", "DNS:web-2.example.org")?;
        until("the agent says that it is taken for another", 40.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let error = status["agent"]["collector"]["error"].as_str().unwrap_or_default().to_owned();
            if error.contains("other_agent") { Ok(()) } else { Err(error) }
        })?;
        assert_eq!(watch.collector.counted("tickbird_records_refused")?, 0);
        Ok(())
    });
}
