//! Capabilities of the calling thread.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Those in effect now.
pub fn held() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |it| it.effective)
}

/// As capabilities(7) spells them.
pub fn named(set: CapabilitySet) -> Vec<String> {
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

/// Keeps those of the permitted ones, and none that a program would inherit; gives what is in effect afterwards.
pub(crate) fn keep(kept: CapabilitySet) -> CapabilitySet {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // Only root may; what cannot be started needs no bound.
        if !kept.contains(one) && remove_capability_from_bounding_set(one) == Err(Errno::INVAL) {
            break; // beyond the last that this kernel knows
        }
    }
    // Before Linux 4.3 there are none.
    let _ = clear_ambient_capability_set();
    let permitted = capabilities(None).map_or(CapabilitySet::empty(), |it| it.permitted) & kept;
    // To give up is always allowed.
    let _ =
        set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() });
    held()
}
