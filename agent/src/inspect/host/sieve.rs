//! When the kernel is asked to leave out what is of no interest here.
//!
//! To compare the ports of a socket costs it a fraction of the row that it would send: of 6,000 sockets a whole dump took
//! 5.5 ms and one for two dozen ports 1.6 ms. With few sockets, or when most are wanted, it only adds to each row. A
//! filtered dump does not tell how many there are, so now and then one is not filtered.

use std::time::Duration;

use super::endpoints::Ports;
use crate::kernel::sock_diag::message::PortFilter;

/// Fewer sockets are cheaper to sort out here.
const LEAST_ROWS: usize = 3_000;
/// It pays when at most one row in so many is wanted.
const WANTED_SHARE: usize = 4;
/// How often the whole host is counted.
const COUNT: Duration = Duration::from_secs(60);

/// Whether it pays, by the last dump that was not filtered.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    pays: bool,
    count_at: Duration,
    is_refused: bool,
}

impl Sieve {
    /// The filter of the next dump; `None` for a whole one.
    pub(super) fn filter(&self, remote: &Ports, local: &Ports, now: Duration) -> Option<PortFilter> {
        (self.pays && now < self.count_at).then(|| PortFilter::of(remote.iter(), local.iter())).flatten()
    }

    /// The same for a second dump of connections in the same look.
    pub(super) fn again(&self, remote: &Ports) -> Option<PortFilter> {
        self.pays.then(|| PortFilter::of(remote.iter(), [])).flatten()
    }

    /// Notes what a whole dump gave.
    pub(super) fn count(&mut self, rows: usize, wanted: usize, now: Duration) {
        self.pays = !self.is_refused && rows > LEAST_ROWS && wanted <= rows / WANTED_SHARE;
        self.count_at = now + COUNT;
    }

    /// This kernel does not take a filter.
    pub(super) fn refuse(&mut self) {
        (self.is_refused, self.pays) = (true, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_kernel_sorts_where_most_of_many_sockets_are_others() {
        let (remote, local) = (Ports::of([5432]), Ports::of([8000]));
        for (rows, wanted, expected) in
            [(3_000, 10, false), (3_001, 750, true), (3_001, 751, false), (20_000, 100, true), (0, 0, false)]
        {
            let mut sieve = Sieve::default();
            assert_eq!(sieve.filter(&remote, &local, at(0)), None, "the first dump counts");
            sieve.count(rows, wanted, at(0));
            assert_eq!(sieve.filter(&remote, &local, at(59)).is_some(), expected, "{rows} {wanted}");
            assert_eq!(sieve.again(&remote).is_some(), expected);
            assert_eq!(sieve.filter(&remote, &local, at(60)), None, "once a minute all are counted");
        }
    }

    #[test]
    fn a_kernel_that_refuses_is_not_asked_again() {
        let ports = Ports::of([5432]);
        let mut sieve = Sieve::default();
        sieve.count(20_000, 10, at(0));
        sieve.refuse();
        assert_eq!(sieve.filter(&ports, &ports, at(1)), None);
        sieve.count(20_000, 10, at(1));
        assert_eq!(sieve.filter(&ports, &ports, at(2)), None);
    }
}
