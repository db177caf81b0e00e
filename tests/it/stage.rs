//! The stage itself, without the binaries under test: what it calls the truth has to be true.

use tickbird_tests::certificate::Certificate;
use tickbird_tests::truth::{backends, descriptors, socket};
use tickbird_tests::xray::Truth;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, Stage, StageError, Webhook, alone, until};

#[test]
fn an_application_says_of_its_leaks_what_the_kernel_and_the_server_say() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let mut application = Application::pooled(stage, "grants-api", &server)?;
        application.does("traffic 20")?;
        let leaked = application.leaks(14)?;
        assert_eq!(leaked.len(), 14);
        let sessions = backends(&server)?;
        for held in &leaked {
            assert_eq!(socket(held.pid, held.fd)?.port, held.port);
            let session = &sessions[&held.port];
            assert_eq!((session.pid, session.state.as_str()), (held.backend, "idle in transaction"));
        }
        application.aborts(1)?;
        let aborted = backends(&server)?.into_values().filter(|it| it.state.ends_with("(aborted)")).count();
        assert_eq!(aborted, 1);
        application.repairs()?;
        // Requests go on, and each is idle in its transaction for a moment.
        until("nothing is idle in a transaction", 10.s(), || {
            let left = backends(&server).map_err(|error| error.to_string())?;
            match left.into_values().filter(|it| it.state.starts_with("idle in")).count() {
                0 => Ok(()),
                left => Err(format!("{left} are")),
            }
        })?;
        until("requests are served", 10.s(), || {
            let served = application.served().map_err(|error| error.to_string())?;
            if served.0 > 20 && served.1 == 0 { Ok(()) } else { Err(format!("{served:?}")) }
        })
    });
}

#[test]
fn a_server_that_ends_a_session_leaves_the_pool_in_close_wait() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let mut application = Application::pooled(stage, "grants-api", &server)?;
        let held = application.holds(3)?;
        server.terminate(held.iter().map(|it| it.backend))?;
        for it in held {
            assert_eq!(socket(it.pid, it.fd)?.state, 8, "CLOSE_WAIT");
        }
        application.repairs()
    });
}

#[test]
fn a_web_server_has_every_bad_habit_that_is_asked_of_it() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        assert_eq!(web.does("descriptors 20")?.as_u64().map(|it| it >= 20), Some(true));
        assert_eq!(web.does("zombies 2")?.as_array().map(Vec::len), Some(2));
        web.does("reap")?;
        web.does("memory 8")?;
        let mut second = web.successor()?;
        assert_eq!(second.port(), web.port(), "both listen on one port");
        assert!(second.does("no such habit").is_err());
        Application::web_tls(stage, "safe", &Certificate::ending_in(stage, 5)?)?;
        Webhook::start(stage).map(drop)
    });
}

/// The truth of one library against the kernel and the server.
fn tells_the_truth(stage: &Stage, server: &Postgres, library: Library) -> Result<(), StageError> {
    let mut application = Application::of_library(stage, library.name(), library, server, Sizes::full(6))?;
    application.does("fill 6")?;
    application.does("traffic 30")?;
    application.does("leak 1")?;
    application.does("keep 2")?;
    for own in ["listen", "lock", "batch"] {
        application.does(own)?;
    }
    let truth = until("the truth is written", 10.s(), || {
        let truth = Truth::read(application.truth()).map_err(|error| error.to_string())?;
        let last = truth.last().ok_or("nothing yet")?.clone();
        let kept = last.connections.values().filter(|it| !it.kept.is_empty()).count();
        if kept == 6 && last.connections.len() == 9 { Ok(last) } else { Err(format!("{last:?}")) }
    })?;
    let (sessions, sockets) = (backends(server)?, descriptors(application.pid())?);
    for it in truth.connections.values() {
        let session = &sessions[&it.port];
        assert_eq!(session.pid, it.backend, "{it:?}");
        let fd = sockets.get(&it.port).unwrap_or_else(|| panic!("no descriptor on that port: {it:?}"));
        assert!(it.fd.is_none_or(|told| told == *fd), "descriptor {fd}: {it:?}");
        let wanted = match it.kept.as_str() {
            "leak" | "batch" => "idle in transaction",
            "" => continue, // traffic uses it now and then
            _ => "idle",
        };
        assert_eq!(session.state, wanted, "{it:?}");
        let name = if it.kept == "batch" { "nightly-batch" } else { library.name() };
        assert_eq!(session.application_name, name, "{it:?}");
    }
    assert_eq!(application.does("repair")?, 3);
    application.does("burst 6 0.3")?;
    until("nothing is kept and requests were served", 10.s(), || {
        let truth = Truth::read(application.truth()).map_err(|error| error.to_string())?;
        let last = truth.last().ok_or("nothing")?;
        let kept = last.connections.values().filter(|it| it.pool == "main" && !it.kept.is_empty()).count();
        let (served, failed) = application.served().map_err(|error| error.to_string())?;
        if kept == 0 && served > 20 && failed == 0 { Ok(()) } else { Err(format!("{served} {failed} {last:?}")) }
    })
}

#[test]
fn every_library_tells_the_truth_about_its_pool() {
    alone(|stage| {
        let server = Postgres::start(stage, 100)?;
        for library in Library::ALL {
            tells_the_truth(stage, &server, library)?;
        }
        Ok(())
    });
}
