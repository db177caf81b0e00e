//! Whether every check that the shipped agent has was looked at with known values on something healthy.

use std::collections::BTreeSet;

use serde_json::Value;

/// Fewer looks than this prove nothing. The slowest are the resolver's and SQLite's, one or two a minute.
const LOOKS: u64 = 5;
/// At least this share of the looks at one target of each check has a known value.
const KNOWN: f64 = 0.5;
/// It has a row only while something is blind: that nothing is, is its `ok`.
const BLIND: &str = "agent.blind";
/// What a database's habit is learnt from (`db.tx_abandoned`), and a minute for the agent to begin.
const LEARNING: u64 = 16;
const LEARNS: &str = "db.tx_abandoned";

/// What is wrong with each check that is not covered, by `defaults --json` and `status --json` of an agent that has looked
/// at something healthy for so many minutes.
pub fn uncovered(defaults: &Value, status: &Value, minutes: u64) -> Vec<String> {
    let listed = ids(&defaults["checks"]);
    let rows = status["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut wrong: Vec<String> = listed.iter().filter_map(|check| lacks(check, rows, status, minutes)).collect();
    wrong.extend(ids(&status["checks"]).difference(&listed).map(|it| format!("{it} is not listed by `defaults`")));
    if listed.is_empty() {
        wrong.push("`defaults` lists no check".to_owned());
    }
    wrong
}

fn ids(rows: &Value) -> BTreeSet<&str> {
    rows.as_array().into_iter().flatten().filter_map(|it| it["check"].as_str()).collect()
}

fn lacks(check: &str, rows: &[Value], status: &Value, minutes: u64) -> Option<String> {
    if check == BLIND {
        let blind = status["blind"].as_array()?;
        return (!blind.is_empty()).then(|| format!("{check}: {}", status["blind"]));
    }
    let of_check: Vec<&Value> = rows.iter().filter(|it| it["check"] == check).collect();
    let share = if check == LEARNS { KNOWN * minutes.saturating_sub(LEARNING) as f64 / minutes as f64 } else { KNOWN };
    let is_covered = |row: &&Value| {
        let (looks, known) =
            (row["looks"].as_u64().unwrap_or_default(), row["looks_known"].as_u64().unwrap_or_default());
        // Until a habit is learnt there is nothing to know.
        let is_well = row["state"] == "ok" || (share <= 0.0 && row["state"] == "not yet");
        is_well && looks >= LOOKS && known as f64 >= share * looks as f64
    };
    if of_check.iter().any(is_covered) {
        return None;
    }
    let seen: Vec<String> = of_check
        .iter()
        .map(|it| {
            let target = it["target"].as_str().unwrap_or("?");
            format!("{target} {} {}/{} {}", it["state"], it["looks_known"], it["looks"], it["value"])
        })
        .collect();
    Some(if seen.is_empty() { format!("{check} has no row") } else { format!("{check}: {}", seen.join("; ")) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(check: &str, state: &str, known: u64, looks: u64) -> Value {
        json!({ "check": check, "target": "pool:shop", "state": state, "looks_known": known, "looks": looks })
    }

    fn wrong(rows: &[Value], blind: &[&str]) -> Vec<String> {
        let listed: Vec<Value> = ["pool.leak", BLIND].iter().map(|it| json!({ "check": it })).collect();
        uncovered(&json!({ "checks": listed }), &json!({ "checks": rows, "blind": blind }), 10)
    }

    #[test]
    fn a_check_is_covered_by_one_target_that_is_well_and_mostly_known() {
        assert!(wrong(&[row("pool.leak", "blind", 0, 60), row("pool.leak", "ok", 31, 60)], &[]).is_empty());
        for (state, known, looks) in [("ok", 1, 60), ("warning", 60, 60), ("ok", 2, 2), ("not yet", 60, 60)] {
            assert_eq!(wrong(&[row("pool.leak", state, known, looks)], &[]).len(), 1, "{state} {known}/{looks}");
        }
        assert_eq!(wrong(&[], &[]), ["pool.leak has no row"]);
    }

    #[test]
    fn blindness_and_a_check_that_the_agent_does_not_list_are_told() {
        let well = row("pool.leak", "ok", 60, 60);
        assert_eq!(wrong(std::slice::from_ref(&well), &["sessions"]), ["agent.blind: [\"sessions\"]"]);
        assert_eq!(wrong(&[well, row("pool.new", "ok", 9, 9)], &[]), ["pool.new is not listed by `defaults`"]);
        assert_eq!(uncovered(&json!({}), &json!({}), 10), ["`defaults` lists no check"]);
    }

    #[test]
    fn a_habit_may_be_learnt_before_it_is_known() {
        let listed = json!({ "checks": [{ "check": LEARNS }] });
        let after = |minutes, row| uncovered(&listed, &json!({ "checks": [row] }), minutes);
        assert!(after(7, row(LEARNS, "not yet", 0, 60)).is_empty());
        assert!(!after(60, row(LEARNS, "not yet", 0, 600)).is_empty());
        assert!(after(60, row(LEARNS, "ok", 430, 600)).is_empty());
    }
}
