//! `/proc/<pid>/stat`, and the small files of numbers beside it.

use std::time::Duration;

/// What is read of `/proc/<pid>/stat`; see proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Field 3: `R`, `S`, `D`, `Z`, …
    pub state: u8,
    /// Field 4.
    pub parent: u32,
    /// Field 9, bit `PF_KTHREAD`: no program, but a thread of the kernel.
    pub is_kernel_thread: bool,
    /// Fields 14 and 15: clock ticks in user and kernel mode, those of threads that ended among them.
    pub cpu_ticks: u64,
    /// Field 20.
    pub threads: u64,
    /// Field 22: clock ticks since boot.
    pub start: u64,
    /// Field 24: resident pages.
    pub resident_pages: u64,
    /// Field 52: what `wait` would give. Zero also when it may not be read.
    pub exit_code: u32,
}

impl Stat {
    /// Whether it has ended and its parent has not waited for it.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// Parses the file. The name (field 2) may hold spaces and parentheses, so fields are counted from its last `)`.
pub fn parse(bytes: &[u8]) -> Option<Stat> {
    let after = bytes.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(&bytes[after..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    // The iterator now stands before field 5; `nth(n)` skips n fields.
    let flags: u64 = fields.nth(4)?.parse().ok()?;
    let user: u64 = fields.nth(4)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let threads = fields.nth(4)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    let resident: i64 = fields.nth(1)?.parse().ok()?;
    let exit_code: i64 = fields.nth(27).and_then(|field| field.parse().ok()).unwrap_or(0);
    Some(Stat {
        state,
        parent,
        is_kernel_thread: flags & 0x0020_0000 != 0,
        cpu_ticks: user.saturating_add(system),
        threads,
        start,
        resident_pages: u64::try_from(resident).unwrap_or(0),
        exit_code: u32::try_from(exit_code).unwrap_or(0),
    })
}

/// How a process ended, from field 52: `killed by signal 9`, `exit status 1`.
pub fn end_in_words(exit_code: u32) -> String {
    match exit_code & 0x7f {
        0 => format!("exit status {}", exit_code >> 8 & 0xff),
        signal => format!("killed by signal {signal}"),
    }
}

/// `/proc/uptime`: seconds, with two decimals.
pub fn parse_uptime(bytes: &[u8]) -> Option<Duration> {
    let seconds: f64 = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// `/proc/loadavg`, last field.
pub fn parse_last_pid(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes).ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
}

/// `/proc/self/auxv`: bytes of a page (`AT_PAGESZ`) and clock ticks of a second (`AT_CLKTCK`), as far as they are told.
pub fn parse_auxv(bytes: &[u8]) -> (Option<u64>, Option<u64>) {
    const WORD: usize = size_of::<usize>();
    let word = |bytes: &[u8]| bytes.first_chunk::<WORD>().map_or(0, |word| usize::from_ne_bytes(*word) as u64);
    let (mut page, mut ticks) = (None, None);
    for pair in bytes.chunks_exact(2 * WORD) {
        match word(pair) {
            6 => page = Some(word(&pair[WORD..])).filter(|bytes| *bytes > 0),
            17 => ticks = Some(word(&pair[WORD..])).filter(|ticks| *ticks > 0),
            _ => (),
        }
    }
    (page, ticks)
}

/// A name of decimal digits, as processes and descriptors have.
pub fn parse_number(name: &[u8]) -> Option<u32> {
    if name.is_empty() || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAIL: &str = "S 7 42 42 0 -1 4194560 100 0 0 0 250 50 1 1 20 0 3 0 9000 2998272 421 \
        18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 256";

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        for name in ["python3", "a b", "x) S 1 (y", "(sd-pam)", ")", ""] {
            let stat = parse(format!("42 ({name}) {TAIL}").as_bytes()).unwrap();
            let expected = Stat {
                state: b'S',
                parent: 7,
                is_kernel_thread: false,
                cpu_ticks: 300,
                threads: 3,
                start: 9000,
                resident_pages: 421,
                exit_code: 256,
            };
            assert_eq!(stat, expected, "{name}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_no_obstacle() {
        let mut bytes = b"42 (\xff\xfe) ".to_vec();
        bytes.extend(TAIL.as_bytes());
        assert_eq!(parse(&bytes).unwrap().start, 9000);
    }

    #[test]
    fn a_cut_file_is_no_process() {
        let text = format!("42 (x) {TAIL}");
        assert_eq!(parse(&text.as_bytes()[..60]), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(end_in_words(0), "exit status 0");
        assert_eq!(end_in_words(3 << 8), "exit status 3");
        assert_eq!(end_in_words(9), "killed by signal 9");
        assert_eq!(end_in_words(11 | 0x80), "killed by signal 11");
    }

    #[test]
    fn the_small_files_are_read() {
        assert_eq!(parse_uptime(b"2454.29 4000.00\n"), Some(Duration::from_millis(2_454_290)));
        assert_eq!(parse_uptime(b"-1 2"), None);
        assert_eq!(parse_last_pid(b"0.01 0.58 0.67 1/92 19779\n"), Some(19779));
        assert_eq!(parse_number(b"12"), Some(12));
        assert_eq!(parse_number(b"+12"), None);
        assert_eq!(parse_number(b"99999999999"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[0-9 ()A-Z-]{0,300}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let _ = (parse(bytes), parse_uptime(bytes), parse_last_pid(bytes), parse_auxv(bytes), parse_number(bytes));
            }
        }
    }
}
