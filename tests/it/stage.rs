//! The stage itself, without the binaries under test: what it calls the truth has to be true.

use tickbird_tests::certificate::Certificate;
use tickbird_tests::truth::{backends, socket};
use tickbird_tests::{Application, Postgres, Seconds, Webhook, alone, until};

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
        let left = backends(&server)?.into_values().filter(|it| it.state.starts_with("idle in")).count();
        assert_eq!(left, 0);
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
