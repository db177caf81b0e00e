//! A server, applications with pools of real libraries, and a watch that is asked once a second what it makes of them.

use std::time::Duration;

use serde_json::Value;

use crate::agent::{app, postgres};
use crate::application::Application;
use crate::library::{Library, Sizes};
use crate::postgres::Postgres;
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};
use crate::watch::{Watch, rows_of};
use crate::xray::{Comparison, Sample, Truth, compare, watch_pools};

/// One application of a scene.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// Stands in its command line and in its sessions.
    pub name: &'static str,
    /// Whose pool it has.
    pub library: Library,
    /// How large.
    pub sizes: Sizes,
}

/// Everything at work, and what the agent said so far.
#[derive(Debug)]
pub struct Scene {
    /// The server of all applications.
    pub server: Postgres,
    /// Receiver, collector and agent.
    pub watch: Watch,
    applications: Vec<Application>,
    samples: Vec<Sample>,
}

impl Scene {
    /// Starts the server, the applications and the watch. `settings` are check sections.
    pub fn begin(stage: &Stage, roles: &[Role], settings: &str) -> Result<Self, StageError> {
        Self::begin_with(stage, roles, settings, |_| Ok(String::new()))
    }

    /// The same with further keys of the application's section.
    pub fn begin_with(
        stage: &Stage,
        roles: &[Role],
        settings: &str,
        keys: impl Fn(&mut Application) -> Result<String, StageError>,
    ) -> Result<Self, StageError> {
        let server = Postgres::start(stage, 200)?;
        Self::made(stage, server, roles, settings, keys)
    }

    /// The same on a server that runs.
    pub fn on(stage: &Stage, server: Postgres, roles: &[Role], settings: &str) -> Result<Self, StageError> {
        Self::made(stage, server, roles, settings, |_| Ok(String::new()))
    }

    fn made(
        stage: &Stage,
        server: Postgres,
        roles: &[Role],
        settings: &str,
        keys: impl Fn(&mut Application) -> Result<String, StageError>,
    ) -> Result<Self, StageError> {
        let mut applications = Vec::new();
        let mut configuration = postgres(&server.dsn_file("tickbird")?);
        for role in roles {
            let mut it = Application::of_library(stage, role.name, role.library, &server, role.sizes)?;
            configuration += &app(role.name, &it.command());
            configuration += &format!("pool.limit = {}\n{}", role.sizes.most, keys(&mut it)?);
            applications.push(it);
        }
        let watch = Watch::of_repeated_faults(stage, &(configuration + settings))?;
        Ok(Self { server, watch, applications, samples: Vec::new() })
    }

    /// One of its applications.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn app(&mut self, name: &str) -> &mut Application {
        self.applications.iter_mut().find(|it| it.name() == name).expect("the scene has an application of that name")
    }

    /// Puts `successor` in the place of an application, which is asked to end: a rolling restart.
    pub fn replace(&mut self, name: &str, successor: Application) -> Result<(), StageError> {
        let mut old = std::mem::replace(self.app(name), successor);
        old.stop().map(drop)
    }

    /// Waits until the agent shows as many connections of each application as it has opened.
    pub fn is_seen(&mut self) -> Result<(), StageError> {
        for it in &self.applications {
            until(format!("the pool of {} is seen", it.name()), 30.s(), || {
                let text = |error: StageError| error.to_string();
                let known = Truth::read(it.truth()).map_err(text)?.last().map_or(0, |last| last.connections.len());
                let pools = crate::xray::pools_in(&self.watch.agent.status().map_err(text)?).map_err(text)?;
                let of = pools.iter().filter(|pool| pool.pid == Some(it.pid()));
                let seen: usize = of.map(|pool| pool.connections.iter().filter(|c| c.session.is_some()).count()).sum();
                if seen >= known && known > 0 { Ok(()) } else { Err(format!("{seen} of {known} with a session")) }
            })?;
        }
        Ok(())
    }

    /// Looks once a second for so long.
    pub fn passes(&mut self, time: Duration) -> Result<(), StageError> {
        self.samples.extend(watch_pools(&self.watch.agent, time, |_| Ok(false))?);
        Ok(())
    }

    /// Looks once a second until `enough` says so; every look counts for [`Scene::comparison`].
    ///
    /// # Errors
    /// When it did not within this time: then with the pools and findings of the last look.
    pub fn passes_until(
        &mut self,
        what: &str,
        within: Duration,
        enough: impl Fn(&Sample) -> bool,
    ) -> Result<(), StageError> {
        let mut came = false;
        let found = watch_pools(&self.watch.agent, within, |sample| {
            came = enough(sample);
            Ok(came)
        })?;
        let last = found.last().map(summary).unwrap_or_default();
        self.samples.extend(found);
        if came { Ok(()) } else { Err(StageError::NotInTime { what: what.to_owned(), within, last }) }
    }

    /// Waits for a finding at the agent itself, and gives it.
    pub fn fires(&mut self, check: &str, name: &str, within: Duration) -> Result<Value, StageError> {
        self.passes_until(&format!("{check} fires for {name}"), within, |it| it.finding(check, name).is_some())?;
        let last = self.samples.last().and_then(|it| it.finding(check, name));
        Ok(last.cloned().unwrap_or_default())
    }

    /// What the application itself wrote so far.
    pub fn truth(&self, name: &str) -> Result<Truth, StageError> {
        let it = self.applications.iter().find(|it| it.name() == name).expect("the scene has that application");
        Truth::read(it.truth())
    }

    /// Every look so far against the truth that the application wrote.
    pub fn comparison(&mut self, name: &str) -> Result<Comparison, StageError> {
        let found = compare(self.app(name).pid(), &self.truth(name)?, &self.samples);
        println!("{name}: {found}");
        Ok(found)
    }

    /// What the agent said so far.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// No finding above `info` on a target that contains `part`, neither at the agent nor at the collector.
    ///
    /// # Errors
    /// With the findings.
    pub fn is_quiet_about(&self, part: &str) -> Result<(), StageError> {
        self.is_quiet_but(part, |_, _| false)
    }

    /// The same, without those for which `is_fault` holds, by check and target.
    ///
    /// # Errors
    /// With the findings.
    pub fn is_quiet_but(&self, part: &str, is_fault: impl Fn(&str, &str) -> bool) -> Result<(), StageError> {
        let told = self.watch.collector.items("findings", "")?;
        let all = self.samples.iter().flat_map(|it| &it.findings).chain(&told);
        let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
        let about = all.filter(|it| text(it, "target").contains(part));
        let loud: Vec<String> = about
            // What this machine's other work does to the agent's own pace is no finding about anybody.
            .filter(|it| it["severity"] != "info" && !["agent.slow", "agent.budget"].contains(&&*text(it, "check")))
            .filter(|it| !is_fault(&text(it, "check"), &text(it, "target")))
            .map(|it| format!("{} {}: {}", it["check"], it["target"], it["summary"]))
            .collect();
        match loud.first() {
            None => Ok(()),
            Some(first) => Err(StageError::Failed {
                what: format!("quiet about {part}"),
                said: format!("{} times: {first}", loud.len()),
            }),
        }
    }

    /// What a check last saw on a target that contains `part`: a number, a pair, or why not.
    pub fn value(&self, check: &str, part: &str) -> Result<Value, StageError> {
        let status = self.watch.agent.status()?;
        let row = rows_of(&status, check, part).first().map(|it| it["value"].clone());
        let said = || StageError::Failed { what: format!("{check} for {part}"), said: "it has no row".into() };
        row.ok_or_else(said)
    }

    /// Each application has served and nothing failed.
    pub fn all_served(&mut self) -> Result<(), StageError> {
        for it in &mut self.applications {
            let (served, failed) = it.served()?;
            if served == 0 || failed > 0 {
                let said = format!("{served} served, {failed} failed");
                return Err(StageError::Failed { what: it.name().to_owned(), said });
            }
        }
        Ok(())
    }
}

/// A look in a few lines, for an error.
fn summary(sample: &Sample) -> String {
    let mut text = String::new();
    for pool in &sample.pools {
        text += &format!("\n{:?} {} {} {}", pool.pid, pool.target, pool.discipline, pool.all["counts"]);
    }
    for it in &sample.findings {
        text += &format!("\n{} {} {} {}", it["severity"], it["check"], it["target"], it["summary"]);
    }
    text
}
