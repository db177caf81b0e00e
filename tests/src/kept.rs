//! What is kept of fuzzing, given to the targets again.

use crate::stage::workspace;

/// A name, and what reads the bytes.
pub type Target<'a> = (&'a str, fn(&[u8]));

/// Runs every target over its kept inputs, in `tests/fuzz/corpus` and `tests/fuzz/found`.
///
/// # Panics
/// With the file, when a target does; and when nothing is kept for one.
pub fn replay(targets: &[Target<'_>]) {
    let kept = workspace().join("tests/fuzz");
    for (name, run) in targets {
        let mut replayed = 0;
        for folder in ["corpus", "found"] {
            let Ok(files) = std::fs::read_dir(kept.join(folder).join(name)) else { continue };
            for file in files.flatten() {
                println!("{name}: {}", file.path().display());
                run(&std::fs::read(file.path()).expect("a kept input"));
                replayed += 1;
            }
        }
        assert!(replayed > 0, "nothing is kept for {name}");
    }
}
