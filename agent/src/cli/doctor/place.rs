//! Where the agent stands: what it sees from there, what not and why, and how to grant it.
//!
//! These lines describe; whether some check is blind for it is said by the lines of the causes.

use rustix::thread::CapabilitySet;

use super::Line;
use crate::inspect::host::Surroundings;

/// Both are needed to look into another user's process.
const LOOKING_IN: [(CapabilitySet, &str); 2] =
    [(CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"), (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH")];

/// Who the agent is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) uid: u32,
    pub(super) capabilities: CapabilitySet,
    /// Whether other network namespaces are to be entered.
    pub(super) enters: bool,
}

impl Who {
    /// This process.
    pub(super) fn am_i(enters: bool) -> Self {
        let capabilities = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |it| it.effective);
        Self { uid: rustix::process::geteuid().as_raw(), capabilities, enters }
    }
}

/// The user, the PID namespace, the network namespaces.
pub(super) fn lines(who: Who, seen: &Surroundings) -> [Line; 3] {
    [rights(who, seen), processes(seen), networks(who, seen)]
}

fn line(what: &str, found: String, advice: Option<String>) -> Line {
    Line { what: what.to_owned(), state: super::NOTE, found, needs: None, advice }
}

fn rights(who: Who, seen: &Surroundings) -> Line {
    let with: Vec<_> = LOOKING_IN.iter().filter(|it| who.capabilities.contains(it.0)).map(|it| it.1).collect();
    let with = match with.as_slice() {
        [] => "neither CAP_SYS_PTRACE nor CAP_DAC_READ_SEARCH".to_owned(),
        [one] => format!("{one} alone, which gives nothing"),
        both => both.join(" and "),
    };
    let found = format!(
        "uid {} with {with}: {} of {} processes refuse to be looked into{}",
        who.uid,
        seen.refusing,
        seen.processes,
        match seen.refusing {
            0 => "",
            _ => "; of their sockets everything is seen but whose they are, of themselves no memory and no pool limit",
        },
    );
    let advice = (seen.refusing > 0).then_some(
        "to see into them run the agent as their user, or set AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH in \
         its unit, both; a process that made itself non-dumpable lets only those two in"
    );
    line("place: rights", found, advice.map(str::to_owned))
}

fn processes(seen: &Surroundings) -> Line {
    let unheld = "some watched sockets are held by processes in another PID namespace: their ports, ages and sessions are \
                  seen, no process and no descriptor";
    let unknown = "not known: processes that refuse to be looked into may hold watched sockets";
    let found = match seen.has_unheld {
        true => unheld.to_owned(),
        false if seen.processes <= 1 => "no process is seen but the agent, which is in one of its own".to_owned(),
        false if seen.refusing > 0 => unknown.to_owned(),
        false => format!("every watched socket is held by one of the {} processes that are seen", seen.processes),
    };
    let advice = (seen.has_unheld || seen.processes <= 1).then_some(
        "set shareProcessNamespace: true in the pod (or --pid of a container engine) and run the agent as the \
         application's user, or run it on the host",
    );
    line("place: PID namespace", found, advice.map(str::to_owned))
}

fn networks(who: Who, seen: &Surroundings) -> Line {
    let mut parts = vec!["the agent's own: everything".to_owned()];
    if seen.entered > 0 {
        parts.push(format!("{} entered: everything but unix sockets", seen.entered));
    }
    if seen.outside > 0 {
        let what = "states, queues and holders of connections are read, no ages, no ends, no requests in flight";
        parts.push(format!("{} seen from outside: {what}", seen.outside));
    }
    let has_admin = who.capabilities.contains(CapabilitySet::SYS_ADMIN);
    let advice = match seen.outside {
        0 => None,
        _ if !who.enters => Some(
            "to see them whole set `namespaces = true` in [host] and grant CAP_SYS_ADMIN beside CAP_SYS_PTRACE and \
             CAP_DAC_READ_SEARCH",
        ),
        _ if !has_admin => Some(
            "entering them needs CAP_SYS_ADMIN beside CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH; see namespaces.conf beside the \
             unit",
        ),
        _ => Some("setns was refused though CAP_SYS_ADMIN is there: allow it in the sandbox (RestrictNamespaces=net)"),
    };
    line("place: network namespaces", parts.join("; "), advice.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(who: Who, seen: &Surroundings) -> String {
        let line = |it: &Line| format!("{}: {}\n  {}\n", it.what, it.found, it.advice.as_deref().unwrap_or("-"));
        lines(who, seen).iter().map(line).collect()
    }

    const ALL: Surroundings = Surroundings { processes: 30, refusing: 0, has_unheld: false, entered: 0, outside: 0 };

    fn nobody(capabilities: CapabilitySet) -> Who {
        Who { uid: 65534, capabilities, enters: false }
    }

    #[test]
    fn where_everything_is_seen_nothing_is_advised() {
        let text = said(nobody(CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH), &ALL);
        assert!(
            text.contains("uid 65534 with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: 0 of 30 processes refuse"),
            "{text}"
        );
        assert!(text.contains("the agent's own: everything\n  -"), "{text}");
        assert_eq!(text.matches("\n  -\n").count(), 3, "{text}");
    }

    #[test]
    fn one_capability_alone_is_called_worthless_and_the_other_is_advised() {
        let text = said(nobody(CapabilitySet::SYS_PTRACE), &Surroundings { refusing: 12, ..ALL });
        assert!(text.contains("CAP_SYS_PTRACE alone, which gives nothing: 12 of 30 processes refuse"), "{text}");
        assert!(text.contains("AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH"), "{text}");
        assert!(text.contains("not known: processes that refuse") && !text.contains("is held by one of"), "{text}");
    }

    #[test]
    fn a_sidecar_is_told_how_to_share_the_processes() {
        let text = said(nobody(CapabilitySet::empty()), &Surroundings { processes: 1, has_unheld: true, ..ALL });
        assert!(text.contains("neither CAP_SYS_PTRACE nor CAP_DAC_READ_SEARCH"), "{text}");
        assert!(text.contains("no process and no descriptor\n  set shareProcessNamespace: true"), "{text}");
    }

    #[test]
    fn other_networks_are_counted_by_how_far_they_are_seen() {
        let seen = Surroundings { entered: 2, outside: 1, ..ALL };
        let mut who = nobody(CapabilitySet::empty());
        assert!(said(who, &seen).contains("to see them whole set `namespaces = true`"));
        who.enters = true;
        let text = said(who, &seen);
        assert!(text.contains("2 entered: everything but unix sockets; 1 seen from outside: states, queues"), "{text}");
        assert!(text.contains("entering them needs CAP_SYS_ADMIN"), "{text}");
        who.capabilities = CapabilitySet::SYS_ADMIN;
        assert!(said(who, &seen).contains("RestrictNamespaces=net"));
    }
}
