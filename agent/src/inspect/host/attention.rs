//! What a look at the host does only when it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks the host inspector for more than a look usually gives. Cheap to clone; every clone is the same wish.
#[derive(Debug, Clone, Default)]
pub struct Attention {
    order_test: Arc<AtomicBool>,
}

impl Attention {
    /// Whether looks from now on dump twice, 30 ms apart, so that [`Connection::picked`](super::Connection::picked) is
    /// told. It doubles the cost of a look.
    pub fn want_order_test(&self, is_wanted: bool) {
        self.order_test.store(is_wanted, Ordering::Relaxed);
    }

    pub(super) fn wants_order_test(&self) -> bool {
        self.order_test.load(Ordering::Relaxed)
    }
}
