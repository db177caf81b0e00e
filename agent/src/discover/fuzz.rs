//! What a process says of itself under any bytes: its environment and its command line.

use super::application::identify;
use super::limits::Settings;
use crate::kernel::proc::strings;
use crate::scrub;

/// Strings with zeros between them, read as both.
pub(crate) fn environment(data: &[u8]) {
    let arguments = strings::arguments(data);
    let settings = Settings::read(data, &arguments);
    for service in [None, Some("postgresql"), Some("redis"), Some("mongodb"), Some("amqp")] {
        for port in [0, 5432] {
            if let Some(it) = settings.limit_for(service, port) {
                assert!(1 <= it.low && it.low <= it.high && it.high <= 200_000, "{it:?}");
            }
        }
    }
    for (port, _) in settings.ports() {
        assert!(settings.named_for(port).is_none_or(|it| it.host.len() <= 255 && it.keys.len() <= 12));
    }
    let identity = format!("{:?}", identify(&arguments, &[]));
    assert!(identity.len() <= 4096, "{} bytes", identity.len());
    assert!(scrub::command_line(&arguments).len() <= 200);

    // Whatever stands behind it, a password is none of what is kept.
    let marked = [b"DATABASE_URL=postgresql+asyncpg://me:hunter2canary@".as_slice(), data].concat();
    let marked = marked.as_slice();
    if !data.to_ascii_lowercase().windows(7).any(|it| it == b"hunter2") {
        let kept = format!("{:?}", Settings::read(marked, &strings::arguments(marked)));
        assert!(!kept.contains("hunter2"), "{kept}");
    }
}
