//! What a look at the host does only when it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Connections that were used so lately are asked in which order their pool hands them out.
pub const USED_LATELY: Duration = Duration::from_secs(10);

/// Asks the host inspector for more than a look usually gives. Cheap to clone; every clone is the same wish.
#[derive(Debug, Clone, Default)]
pub struct Attention {
    order_test: Arc<AtomicBool>,
}

impl Attention {
    /// Whether looks from now on ask again, 30 ms later, what was sent on connections that were used lately, so that
    /// [`Connection::picked`](super::Connection::picked) of those is told. With many of them it doubles the cost of a look.
    pub fn want_order_test(&self, is_wanted: bool) {
        self.order_test.store(is_wanted, Ordering::Relaxed);
    }

    pub(super) fn wants_order_test(&self) -> bool {
        self.order_test.load(Ordering::Relaxed)
    }
}
