//! An application of some pages that fail or not at a word, and an agent that asks each of them.

use crate::agent::Agent;
use crate::application::Application;
use crate::collector::Collector;
use crate::stage::{Stage, StageError};

/// A shop with these pages, and an agent of this collector that asks each of them once a second and holds nothing back.
pub fn shop(stage: &Stage, collector: &Collector, pages: &[&str]) -> Result<(Application, Agent), StageError> {
    let web = Application::web(stage, "shop", 0)?;
    let pages: Vec<String> = pages.iter().map(|it| web.page(it)).collect();
    let agent = Agent::asking(stage, collector, &pages.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok((web, agent))
}
