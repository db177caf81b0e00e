//! What goes when the buffer is full: whole oldest generations, bulk before urgent.

use tickbird_shared::Lane;

/// What a lane could give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Giver {
    pub(super) lane: Lane,
    pub(super) bytes_on_disk: u64,
    /// It has a generation besides the one written to, or records waiting in that one.
    pub(super) can_give: bool,
}

/// The lane whose oldest generation goes now; `None` when all fits, or nothing is left to give.
pub(super) fn next_to_give(lanes: &[Giver], max_bytes: u64) -> Option<Lane> {
    let used: u64 = lanes.iter().map(|lane| lane.bytes_on_disk).sum();
    if used <= max_bytes {
        return None;
    }
    lanes.iter().filter(|lane| lane.can_give).map(|lane| lane.lane).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(urgent: (u64, bool), bulk: (u64, bool)) -> [Giver; 2] {
        let lane = |lane, (bytes_on_disk, can_give)| Giver { lane, bytes_on_disk, can_give };
        [lane(Lane::Urgent, urgent), lane(Lane::Bulk, bulk)]
    }

    #[test]
    fn bulk_goes_first_and_nothing_goes_while_all_fits() {
        assert_eq!(next_to_give(&lanes((60, true), (40, true)), 100), None);
        assert_eq!(next_to_give(&lanes((60, true), (41, true)), 100), Some(Lane::Bulk));
        assert_eq!(next_to_give(&lanes((100, true), (1, false)), 100), Some(Lane::Urgent));
        assert_eq!(next_to_give(&lanes((100, false), (1, false)), 100), None);
    }
}
