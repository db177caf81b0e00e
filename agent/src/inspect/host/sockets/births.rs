//! Whether a network namespace has a socket that its last dump did not show.
//!
//! A dump goes through the kernel's whole table of connections, which grows with the machine's memory, whatever is in it: on a
//! quiet host that is most of what a look costs. But the kernel keeps the number of sockets, and tells of each one that ends.
//! So many as the last dump showed, less those of it that have ended, and none was born: the known ones, looked up one by one,
//! are all. One that left the table without an end (it was reset, and its process holds the descriptor) may hide one that was
//! born; so now and then the table is gone through all the same.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::path::Path;
use std::time::Duration;

use super::Ports;
use crate::kernel::sock_diag::Destroyed;
use crate::kernel::socket::{NumberHasher, Socket};
use crate::kernel::sockstat::Counter;

/// Identities of sockets.
pub(super) type Cookies = HashSet<u64, BuildHasherDefault<NumberHasher>>;

/// Of a host with more sockets than this they are not remembered; the kernel sorts out what is of no interest.
const MOST: u64 = 1024;
/// So many looks follow on a dump without one: what was miscounted is found by the next.
const LOOKS: u8 = 3;
/// After so many dumps on each of which a birth followed, births are common here.
const IN_VAIN: u8 = 4;
/// Then, or where to look the known ones up is dearer than a dump, it is not tried for so many looks.
const REST: u8 = 60;

/// What is known of one network namespace since its last dump.
#[derive(Debug, Default)]
pub(super) struct Births {
    counter: Option<Counter>,
    dump: Option<Dump>,
    in_vain: u8,
    rest: u8,
}

/// A dump whose sockets were counted.
#[derive(Debug)]
struct Dump {
    /// All it showed that have not ended since.
    cookies: Cookies,
    /// Sockets that the kernel counts if none was born.
    sockets: u64,
    /// Those of them that were wanted, without what listens.
    known: Vec<Socket>,
    ports: [Ports; 2],
    cost: Duration,
    /// Looks since without a dump.
    looks: u8,
}

impl Births {
    /// Takes ends in.
    pub(super) fn ended(&mut self, destroyed: &[Destroyed]) {
        let Some(dump) = &mut self.dump else { return };
        let gone = destroyed.iter().filter(|it| dump.cookies.remove(&it.cookie)).count() as u64;
        if gone > 0 {
            dump.sockets = dump.sockets.saturating_sub(gone);
            dump.known.retain(|it| dump.cookies.contains(&it.cookie));
        }
    }

    /// Some ends were lost, or a known one is gone without.
    pub(super) fn forget(&mut self) {
        self.dump = None;
    }

    /// The known connections, where no other was born since the last dump that was for the same ports (of others, of ours).
    pub(super) fn none_since(&mut self, remote: &Ports, local: &Ports) -> Option<&[Socket]> {
        let dump = self.dump.take().filter(|it| it.looks < LOOKS && it.ports[0] == *remote && it.ports[1] == *local)?;
        if self.counter.as_ref()?.read().ok()? != dump.sockets {
            self.in_vain += u8::from(dump.looks == 0);
            if self.in_vain >= IN_VAIN {
                (self.in_vain, self.rest) = (0, REST);
            }
            return None;
        }
        self.in_vain = 0;
        let dump = self.dump.insert(dump);
        dump.looks += 1;
        Some(&dump.known)
    }

    /// To look the known ones up took so long.
    pub(super) fn took(&mut self, time: Duration) {
        if self.dump.as_ref().is_some_and(|dump| dump.cost < time) {
            (self.dump, self.rest) = (None, REST);
        }
    }

    /// Begins a dump: how many sockets there are; `None` where they need not be remembered. `root` as for [`Counter::open`].
    pub(super) fn count(&mut self, root: &Path) -> Option<u64> {
        self.dump = None;
        self.rest = self.rest.saturating_sub(1);
        if self.rest > 0 {
            return None;
        }
        if self.counter.is_none() {
            self.counter = Counter::open(root).ok();
        }
        let count = self.counter.as_ref()?.read().ok();
        if count.is_none() {
            self.counter = None;
        }
        count.filter(|it| *it <= MOST)
    }

    /// A dump that began with `before` sockets showed these.
    pub(super) fn shown(
        &mut self,
        before: u64,
        cookies: Cookies,
        known: Vec<Socket>,
        (remote, local): (&Ports, &Ports),
        cost: Duration,
    ) {
        let is_counted = |counter: &Counter| counter.read().is_ok_and(|now| now == before);
        if self.counter.as_ref().is_some_and(is_counted) {
            let ports = [remote.clone(), local.clone()];
            self.dump = Some(Dump { cookies, sockets: before, known, ports, cost, looks: 0 });
        }
    }
}

#[cfg(test)]
mod tests;
