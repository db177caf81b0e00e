//! Who is told: each receiver is one thing, and what it is stands in a table of that name.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use tickbird_shared::Severity;
use zeroize::Zeroizing;

use super::Mistake;
use super::fields::Fields;
use crate::alert::{Form, Receiver, Template, TemplateError, Words};
use crate::notify::email::{Security, Settings};
use crate::notify::{Destination, Trust, email, webhook};

/// What a receiver can be.
const KINDS: [&str; 4] = ["webhook", "slack", "email", "alertmanager"];
/// How often an Alertmanager is told what it believes, as Prometheus does; it forgets what it was not told for four times as long.
const REFRESH: Duration = Duration::from_secs(60);
const LONGEST_REFRESH: Duration = Duration::from_secs(3600);
/// An attempt that may take longer keeps the collector from ending.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest that a letter may wait for a recipient who is put off.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3_600);

pub(super) fn one(
    mut fields: Fields,
    directory: &Path,
    names: &mut HashSet<String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<(Receiver, Destination)> {
    let name = fields.text("name", mistakes);
    match &name {
        None => fields.mistake("name", "is missing".into(), "write name = \"ops\"", mistakes),
        Some(name) if !names.insert(name.clone()) => {
            fields.mistake("name", format!("`{name}` is there twice"), "give each receiver its own name", mistakes);
        }
        Some(_) => (),
    }
    let min_severity = fields.text("min_severity", mistakes).map_or(Some(Severity::Warning), |word| {
        let severity = word.parse().ok();
        if severity.is_none() {
            let what = format!("`{word}` is no severity");
            fields.mistake("min_severity", what, "write \"info\", \"warning\" or \"critical\"", mistakes);
        }
        severity
    });
    let skip_checks = fields.texts("skip_checks", mistakes).unwrap_or_else(|| vec!["agent.blind".into()]);
    let found = destination(&mut fields, directory, mistakes);
    fields.finish(mistakes);
    let (form, destination) = found?;
    Some((Receiver { name: name?, min_severity: min_severity?, skip_checks, form }, destination))
}

/// Where a receiver is, and what it understands.
fn destination(fields: &mut Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Option<(Form, Destination)> {
    let mut named = KINDS.into_iter().filter(|kind| fields.has(kind));
    let kind = named.next().unwrap_or(KINDS[0]);
    let others: Vec<_> = named.collect();
    for other in others {
        let what = format!("a receiver is one thing, and this one is {kind}");
        fields.mistake(other, what, "make two receivers of it", mistakes);
        fields.ignore(other);
    }
    let of = fields.table(kind, mistakes);
    match kind {
        "email" => Some((Form::Email, Destination::Email(letters(of, directory, mistakes)?))),
        "alertmanager" => alerts(of, directory, mistakes).map(|it| (Form::Alertmanager, it)),
        "slack" => Some((Form::Slack, Destination::Chat(chat(of, directory, mistakes)?))),
        _ => requests(of, directory, mistakes).map(|(form, it)| (form, Destination::Webhook(it))),
    }
}

fn requests(mut of: Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Option<(Form, webhook::Config)> {
    let before = mistakes.len();
    let (url, url_key) = url(&mut of, "write webhook.url = \"https://…\"", directory, mistakes);
    let secret = of.file("secret_file", directory, mistakes);
    let tls = TlsFiles::read(&mut of, directory, mistakes);
    let method = of.text("method", mistakes);
    let (worded, headers): (Vec<_>, Vec<_>) =
        headers(of.table("headers", mistakes), directory, mistakes).into_iter().partition(Header::is_template);
    let is_file = of.has("body_file");
    if is_file && of.has("body") {
        of.mistake("body", "is there, and a body_file, too".into(), "leave one of them out", mistakes);
        of.ignore("body");
    }
    let body = of.text("body", mistakes);
    let body = if is_file { of.file("body_file", directory, mistakes) } else { body };
    of.finish(mistakes);
    if mistakes.len() > before {
        return None;
    }
    let secret = secret.as_deref().map(str::trim);
    let config = webhook::Config::new(&url?, secret, &tls.trust());
    let (method, worded_method) = match method {
        Some(method) if Words::is_template(&method) => (None, Some(method)),
        method => (method, None),
    };
    let config = config.and_then(|it| it.asking(method.as_deref(), headers.iter().map(Header::pair)));
    let varies = worded.iter().try_for_each(|it| webhook::Config::may_vary(&it.name));
    let config = config
        .and_then(|it| varies.map(|()| it))
        .map_err(|error| of.mistake(error.key(url_key), error.to_string(), error.advice(), mistakes))
        .ok()?;
    let mut words = Words::default();
    let mut wrong: Vec<(&str, String, TemplateError)> = Vec::new();
    if let Some(method) = worded_method
        && let Err(error) = words.set_method(&method)
    {
        wrong.push(("method", String::new(), error));
    }
    for Header { name, value, .. } in &worded {
        if let Err(error) = words.add_header(name, value) {
            wrong.push(("headers", format!("`{name}`: "), error));
        }
    }
    match body.map(|it| Template::new(&it, config.takes_json())) {
        Some(Ok(template)) => words.set_body(template),
        Some(Err(error)) => wrong.push((if is_file { "body_file" } else { "body" }, String::new(), error)),
        None => (),
    }
    for (key, what, error) in &wrong {
        of.mistake(key, format!("{what}{error}"), error.advice(), mistakes);
    }
    let form = if words.is_empty() { Form::Own } else { Form::Words(words) };
    wrong.is_empty().then_some((form, config))
}

/// A header as it is configured.
struct Header {
    name: String,
    value: Zeroizing<String>,
    /// Its value stands in a file: it is a secret, and never a template.
    is_secret: bool,
}

impl Header {
    fn is_template(&self) -> bool {
        !self.is_secret && Words::is_template(&self.value)
    }

    fn pair(&self) -> (&str, &str) {
        (&self.name, &self.value)
    }
}

/// Texts, or files with texts that are secret.
fn headers(mut of: Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Vec<Header> {
    let mut headers = Vec::new();
    for name in of.keys() {
        let is_secret = of.is_table(&name);
        let value = if is_secret {
            let mut table = of.table(&name, mistakes);
            let advice = "write { file = \"/etc/tickbird/token\" }";
            let text =
                needed(&mut table, "file", advice, mistakes, |of, key, mistakes| of.file(key, directory, mistakes));
            table.finish(mistakes);
            text.map(Zeroizing::new).map(|it| Zeroizing::new(it.trim_end_matches(['\r', '\n']).to_owned()))
        } else {
            of.text(&name, mistakes).map(Zeroizing::new)
        };
        headers.extend(value.map(|value| Header { name, value, is_secret }));
    }
    headers
}

/// What a TLS session needs beside the place, as far as it stands in files.
struct TlsFiles {
    authorities: Option<String>,
    server_name: Option<String>,
    identity: Option<(String, Zeroizing<String>)>,
}

impl TlsFiles {
    fn read(of: &mut Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Self {
        let is_named = [of.has("certificate_file"), of.has("key_file")];
        if is_named[0] != is_named[1] {
            let key = if is_named[0] { "key_file" } else { "certificate_file" };
            of.mistake(key, "is missing".into(), "a certificate goes with its key", mistakes);
        }
        let authorities = of.file("ca_file", directory, mistakes);
        let server_name = of.text("server_name", mistakes);
        let chain = of.file("certificate_file", directory, mistakes);
        let key = of.file("key_file", directory, mistakes).map(Zeroizing::new);
        Self { authorities, server_name, identity: chain.zip(key) }
    }

    fn trust(&self) -> Trust<'_> {
        Trust {
            authorities: self.authorities.as_deref().map(str::as_bytes),
            server_name: self.server_name.as_deref(),
            identity: self.identity.as_ref().map(|(chain, key)| (chain.as_bytes(), key.as_bytes())),
        }
    }
}

/// A URL, or a file that holds one that is a secret; and the key that it stands at.
fn url(
    of: &mut Fields,
    advice: &str,
    directory: &Path,
    mistakes: &mut Vec<Mistake>,
) -> (Option<Zeroizing<String>>, &'static str) {
    const FILE: &str = "url_file";
    if !of.has(FILE) {
        return (needed(of, "url", advice, mistakes, Fields::text).map(Zeroizing::new), "url");
    }
    if of.has("url") {
        of.mistake("url", "is there, and a url_file, too".into(), "leave one of them out", mistakes);
        of.ignore("url");
    }
    (of.file(FILE, directory, mistakes).map(Zeroizing::new), FILE)
}

/// Whoever knows the URL of one of Slack may post, so it is a secret.
fn chat(mut of: Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Option<webhook::Config> {
    let advice = "write slack.url_file = \"…\", a file that holds the URL";
    let url = needed(&mut of, "url_file", advice, mistakes, |of, key, mistakes| of.file(key, directory, mistakes));
    let tls = TlsFiles::read(&mut of, directory, mistakes);
    of.finish(mistakes);
    let webhook = webhook::Config::new(&url?, None, &tls.trust());
    webhook.map_err(|error| of.mistake(error.key("url_file"), error.to_string(), error.advice(), mistakes)).ok()
}

fn alerts(mut of: Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Option<Destination> {
    let before = mistakes.len();
    let (url, url_key) = url(&mut of, "write alertmanager.url = \"http://alertmanager:9093\"", directory, mistakes);
    let tls = TlsFiles::read(&mut of, directory, mistakes);
    let headers = headers(of.table("headers", mistakes), directory, mistakes);
    let refresh = of.duration("refresh", mistakes).unwrap_or(REFRESH);
    if refresh < super::SHORTEST_TIME || refresh > LONGEST_REFRESH {
        of.mistake("refresh", "is not between a second and an hour".into(), "write \"1m\"", mistakes);
    }
    of.finish(mistakes);
    if mistakes.len() > before {
        return None;
    }
    let url = format!("{}/api/v2/alerts", url?.trim().trim_end_matches('/'));
    let headers = headers.iter().map(Header::pair);
    let config = webhook::Config::new(&url, None, &tls.trust()).and_then(|it| it.asking(None, headers));
    let config =
        config.map_err(|error| of.mistake(error.key(url_key), error.to_string(), error.advice(), mistakes)).ok()?;
    Some(Destination::Alertmanager(config, refresh))
}

fn letters(mut of: Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Option<email::Config> {
    let before = mistakes.len();
    let smarthost =
        needed(&mut of, "smarthost", "write email.smarthost = \"mail.example.org:587\"", mistakes, Fields::text);
    let from = needed(&mut of, "from", "write email.from = \"tickbird@example.org\"", mistakes, Fields::text);
    let to = needed(&mut of, "to", "write email.to = [\"oncall@example.org\"]", mistakes, Fields::texts);
    let security = match of.text("tls", mistakes).as_deref() {
        None | Some("starttls") => Security::StartTls,
        Some("implicit") => Security::Implicit,
        Some("none") => Security::Plain,
        Some(other) => {
            let what = format!("`{other}` is no way to begin TLS");
            of.mistake("tls", what, "write \"starttls\", \"implicit\" (port 465) or \"none\"", mistakes);
            Security::StartTls
        }
    };
    let is_named = (of.has("user"), of.has("password_file"));
    if is_named.0 != is_named.1 {
        let key = if is_named.0 { "password_file" } else { "user" };
        of.mistake(key, "is missing".into(), "a user goes with a password_file", mistakes);
    }
    let (user, password) = (of.text("user", mistakes), of.file("password_file", directory, mistakes));
    let password = password.map(Zeroizing::new).map(|it| Zeroizing::new(it.trim_end_matches(['\r', '\n']).to_owned()));
    let hello = of.text("hello", mistakes);
    let timeout = of.duration("timeout", mistakes);
    if timeout.is_some_and(|it| it < super::SHORTEST_TIME || it > LONGEST_TIMEOUT) {
        of.mistake("timeout", "is not between a second and a minute".into(), "write \"30s\"", mistakes);
    }
    let patience = of.duration("wait_for_recipient", mistakes);
    if patience.is_some_and(|it| it < super::SHORTEST_TIME || it > LONGEST_PATIENCE) {
        let what = "is not between a second and an hour".into();
        of.mistake("wait_for_recipient", what, "write \"10m\"", mistakes);
    }
    let TlsFiles { authorities, server_name, identity } = TlsFiles::read(&mut of, directory, mistakes);
    of.finish(mistakes);
    if mistakes.len() > before {
        return None;
    }
    let login = user.zip(password);
    let settings = Settings {
        smarthost: smarthost?,
        from: from?,
        to: to?,
        security,
        login,
        hello,
        timeout,
        patience,
        authorities,
        server_name,
        identity,
    };
    let config = email::Config::new(settings);
    let told = |errors: Vec<email::ConfigError>| {
        for error in errors {
            of.mistake(error.key(), error.to_string(), error.advice(), mistakes);
        }
    };
    config.map_err(told).ok()
}

/// What must be there.
fn needed<T>(
    of: &mut Fields,
    key: &str,
    advice: &str,
    mistakes: &mut Vec<Mistake>,
    read: impl FnOnce(&mut Fields, &str, &mut Vec<Mistake>) -> Option<T>,
) -> Option<T> {
    if !of.has(key) {
        of.mistake(key, "is missing".into(), advice, mistakes);
        return None;
    }
    read(of, key, mistakes)
}
