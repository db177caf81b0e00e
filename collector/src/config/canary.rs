//! Who waits for canaries.

use std::collections::HashSet;
use std::time::Duration;

use super::fields::Fields;
use super::{Mistake, SHORTEST_TIME};
use crate::aggregate::CanarySettings;

const LONGEST: Duration = Duration::from_secs(3600);

pub(super) fn read(
    mut fields: Fields,
    receivers: &HashSet<String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<CanarySettings> {
    let receiver = fields.text("receiver", mistakes);
    match &receiver {
        None => fields.mistake("receiver", "is missing: who waits for them".into(), "name a [[receiver]]", mistakes),
        Some(name) if !receivers.contains(name) => {
            fields.mistake("receiver", format!("there is no receiver `{name}`"), "name a [[receiver]]", mistakes);
        }
        Some(_) => (),
    }
    let mut settings = CanarySettings::new(receiver.unwrap_or_default());
    let times = [
        ("every", &mut settings.every),
        ("missing_after", &mut settings.missing_after),
        ("slow", &mut settings.slow),
        ("slow_hold", &mut settings.slow_hold),
    ];
    for (key, time) in times {
        if let Some(written) = fields.duration(key, mistakes) {
            *time = written;
            if written < SHORTEST_TIME || written > LONGEST {
                fields.mistake(key, "is not between a second and an hour".into(), "write \"1m\"", mistakes);
            }
        }
    }
    if settings.missing_after < settings.every {
        let what = "is less than `every`: each one would be missed before it can be told";
        fields.mistake("missing_after", what.into(), "write at least three times as much as `every`", mistakes);
    }
    fields.finish(mistakes);
    Some(settings)
}
