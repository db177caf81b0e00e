//! Files out of reach, by Landlock.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, path_beneath_rules,
};

use crate::{Files, Paths};

/// The newest rights over files that are asked for; an older kernel takes those it knows.
const NEWEST: ABI = ABI::V5;

/// Gives up all files but these. Paths that are not there are passed over.
pub(crate) fn give_up(paths: &Paths) -> Files {
    match restrict(paths) {
        Ok(RulesetStatus::FullyEnforced) => Files::All,
        Ok(RulesetStatus::PartiallyEnforced) => Files::Most,
        Ok(RulesetStatus::NotEnforced) => Files::None("this kernel has no Landlock, or it is switched off".into()),
        Err(error) => Files::None(error.to_string()),
    }
}

fn restrict(paths: &Paths) -> Result<RulesetStatus, RulesetError> {
    // Nobody here starts a program; libraries are mapped, which is no execution to Landlock.
    let without_execution = |set: BitFlags<AccessFs>| set & !BitFlags::from(AccessFs::Execute);
    let all = AccessFs::from_all(NEWEST);
    let ruleset = Ruleset::default()
        // The first kernels with Landlock refuse every rename between directories: what is damaged could not be set aside.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(&paths.read, without_execution(AccessFs::from_read(NEWEST))))?
        .add_rules(path_beneath_rules(&paths.write, without_execution(all)))?;
    Ok(ruleset.restrict_self()?.ruleset)
}
