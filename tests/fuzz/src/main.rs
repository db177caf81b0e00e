//! One target under libFuzzer: `TICKBIRD_FUZZ` names it. `cargo xtask fuzz` builds and runs this.

#![no_main]

use std::alloc::System;
use std::sync::OnceLock;

use cap::Cap;
use libfuzzer_sys::{Corpus, fuzz_target};

/// What an input may take while it is read: a constant, and so many times its own size. Bodies of batches may unfold to
/// a mebibyte of text here, and a frame to 300 KiB.
const ROOM: usize = 24 << 20;
const TIMES: usize = 256;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

fn target() -> fn(&[u8]) {
    static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        // A panic's own words may need more than is left.
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = MEMORY.set_limit(usize::MAX);
            told(panic);
        }));
        let name = std::env::var("TICKBIRD_FUZZ").expect("TICKBIRD_FUZZ names a target");
        let mut all = tickbird_agent::fuzz::TARGETS.iter().chain(tickbird_collector::fuzz::TARGETS);
        let found = all.find(|(it, _)| *it == name);
        found.unwrap_or_else(|| panic!("`{name}` is no target")).1
    })
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let run = target();
    let before = MEMORY.allocated();
    // Whoever asks for more gets none, and the process aborts with this input.
    let _ = MEMORY.set_limit(before + ROOM + TIMES * data.len());
    run(data);
    let _ = MEMORY.set_limit(usize::MAX);
    Corpus::Keep
});
