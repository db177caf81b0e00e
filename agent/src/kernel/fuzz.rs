//! The kernel's tables and files under any bytes.

use std::path::Component;

use super::cgroup::{self, Hierarchy};
use super::proc::{descriptors, limits, memory, stat, status, strings};
use super::sock_diag::message::{self, Frame, Message};
use super::sock_diag::unix::UnixRow;
use super::{proc_net, sockstat};

/// Files of `/proc`: each parser reads the same bytes.
pub(crate) fn proc(data: &[u8]) {
    if let Some(it) = stat::parse(data) {
        assert!(stat::end_in_words(it.exit_code).len() < 40);
    }
    let (page, ticks) = stat::parse_auxv(data);
    assert!(page != Some(0) && ticks != Some(0), "both divide");
    let _ = (stat::parse_uptime(data), stat::parse_last_pid(data), stat::parse_number(data), status::parse_uid(data));
    let _ = (memory::parse_pss(data), memory::parse_anonymous_pages(data), limits::parse_open_files(data));
    let _ = (descriptors::parse_socket(data), descriptors::parse_writable(data));
    let _ = (sockstat::parse(data, "TCP:"), sockstat::parse(data, "TCP6:"));
    let arguments = strings::arguments(data);
    assert!(arguments.iter().map(|it| it.len() + 1).sum::<usize>() <= data.len() + 1);
    assert!(strings::value_of(data, "PATH").is_none_or(|it| it.len() < data.len()));

    let mut rows = 0;
    let whole = proc_net::read_table(data, |_| rows += 1);
    let lines = data.split_inclusive(|it| *it == b'\n').count();
    assert!(rows <= lines && (whole.is_err() || rows == lines.saturating_sub(1)), "a row that cannot be read is told");

    let text = String::from_utf8_lossy(data);
    let _ = (cgroup::parse_limit(&text), cgroup::keyed(&text, "anon"));
    assert!(cgroup::unescaped(&text).len() <= text.len());
    // A file of mounts, and behind an empty line the cgroup of a process.
    let at = data.windows(2).position(|it| it == b"\n\n").unwrap_or(data.len());
    if let Some(hierarchy) = Hierarchy::find(&data[..at])
        && let Some(directory) = hierarchy.directory(&data[at..])
    {
        let beneath = hierarchy.beneath(&directory).expect("beneath the mount");
        assert!(beneath.components().all(|it| matches!(it, Component::Normal(_))), "{beneath:?} leads away");
        assert!(directory.as_os_str().len() <= 4 * data.len());
    }
}

/// A datagram of netlink.
pub(crate) fn sock_diag(data: &[u8]) {
    let mut messages = 0;
    for it in message::messages(data) {
        messages += 1;
        if let Message::Row { row, .. } = it {
            let _ = (row.cookie(), row.ends());
            assert!(row.socket().is_none_or(|it| it.remote.port() == row.remote_port && it.cookie == row.cookie()));
        }
    }
    for it in message::frames(data) {
        messages += 1;
        if let Frame::Body { body, .. } = it
            && let Some(row) = UnixRow::parse(body)
        {
            assert!(row.name.is_none_or(|it| !it.is_empty() && it.len() < body.len()));
            assert!(row.path().is_none_or(|it| !it.contains(&0)), "a path has no zero in it");
        }
    }
    assert!(messages <= data.len() / 8, "a message has a header of 16 bytes");
}
