//! Receivers that understand another form than our own.

use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::Manner;
use tickbird_tests::{Agent, Application, Collector, Seconds, StageError, Webhook, alone, shop, until};

#[test]
fn slack_gets_a_line_and_its_proof_alone_and_in_a_group_and_the_address_is_never_told() {
    alone(|stage| {
        let chat = Webhook::start_unsigned(stage)?;
        let mut collector = Collector::init(stage)?;
        let url = stage.room("chat")?.join("url");
        std::fs::write(&url, format!("{}?key=T0PS3CRET\n", chat.url())).map_err(StageError::system("write the URL"))?;
        let route = "[route]\nreceiver = \"chat\"\n[[route.routes]]\nmatchers = ['target=~\".*/t.*\"']\ngroup_by = [\"check\"]\ngroup_wait = \"8s\"\ngroup_interval = \"2s\"\n";
        let settings = format!("\n[[receiver]]\nname = \"chat\"\nslack.url_file = \"{}\"\n{route}", url.display());
        collector.configure(&settings)?;
        collector.command(&["receiver", "test", "chat", "--send"])?;
        let tried =
            chat.hears("a test", 10.s(), |it| it.json["text"].as_str().is_some_and(|it| it.starts_with("[TEST]")))?;
        assert_eq!(tried.json["attachments"][0]["text"], "this is a test, and nothing is wrong\nnothing is to be done");
        collector.serve()?;
        let (mut web, mut agent) = shop(stage, &collector, &["shelf", "till", "table"])?;
        web.does("status 500")?;
        let says = |what: &'static str, words: &'static [&'static str]| {
            chat.hears(what, 60.s(), move |it| {
                let text = it.json["text"].as_str().unwrap_or_default();
                words.iter().all(|word| text.contains(word))
            })
        };
        let alone = says("of one page", &["[FIRING] critical *http.status* of endpoint:", "/shelf"])?;
        assert_eq!(alone.json["attachments"][0]["color"], "danger", "{}", alone.body);
        let together = says("of two", &["[FIRING] critical 2 firing: 2 http.status of 2 targets"])?;
        assert_eq!(together.json["attachments"].as_array().map(Vec::len), Some(2), "{}", together.body);
        web.does("status 200")?;
        let over = says("that it is over", &["[RESOLVED]", "/shelf"])?;
        assert_eq!(over.json["attachments"][0]["color"], "good", "{}", over.body);
        let said = [collector.command(&["receiver", "list"])?, collector.log()].concat();
        assert!(!said.contains("T0PS3CRET"), "who knows the address may post: {said}");
        agent.stop().map(drop)
    });
}

#[test]
fn words_of_the_operators_own_are_signed_like_any_other_and_stay_what_they_were_when_they_were_decided() {
    const BODY: &str = r#"{"type": {{ type | tojson }}, "subject": {{ (incident.summary if incident is defined else group.summary) | tojson }}}"#;
    const METHOD: &str = "{{ 'PATCH' if type == 'incident.resolved' else 'PUT' }}";
    const ABOUT: &str =
        "{{ severity if severity is defined else (incident if incident is defined else group).severity }} of {{ id }}";
    alone(|stage| {
        let tickets = Webhook::start(stage)?;
        tickets.becomes(Manner::Fails);
        let mut collector = Collector::init(stage)?;
        let room = stage.room("tickets")?;
        let write = |file: &str, text: &str| {
            std::fs::write(room.join(file), text).map_err(StageError::system("write a file of the receiver"))
        };
        write("token", "Bearer T0PS3CRET\n")?;
        write("body", &BODY.replace("summary", "sumary"))?;
        let at = |file: &str| room.join(file).display().to_string();
        collector.configure(&format!(
            "{}webhook.method = \"{METHOD}\"\n\
             webhook.headers = {{ x-team = \"shop\", x-about = \"{ABOUT}\", authorization = {{ file = \"{}\" }} }}\n\
             webhook.body_file = \"{}\"\n",
            receiver(&tickets),
            at("token"),
            at("body"),
        ))?;
        let said = collector.command(&["check-config"]).expect_err("the word is spelt wrong").to_string();
        for words in ["receiver[0].webhook.body_file", "line 1, column", "incident.sumary", "of a sample"] {
            assert!(said.contains(words), "`{words}`: {said}");
        }
        write("body", BODY)?;
        collector.rewrite("{{ id }}\"", "{{ ids }}\"")?;
        let said = collector.command(&["check-config"]).expect_err("the name is wrong").to_string();
        for words in ["receiver[0].webhook.headers", "`x-about`", "undefined value", "of a sample"] {
            assert!(said.contains(words), "`{words}`: {said}");
        }
        collector.rewrite("{{ ids }}\"", "{{ id }}\"")?;
        let shown = collector.command(&["receiver", "test", "ops"])?;
        assert!(shown.starts_with("PUT\nx-about: info of msg_") && shown.contains("\n\n{\n"), "{shown}");
        assert!(!shown.contains("T0PS3CRET"), "{shown}");
        tickets.becomes(Manner::Accepts);
        collector.command(&["receiver", "test", "ops", "--send"])?;
        let tried = tickets.hears("a test", 10.s(), |it| it.kind() == "receiver.test")?;
        assert_eq!((tried.method.as_str(), tried.header("x-about")), ("PUT", Some(&*format!("info of {}", tried.id))));
        assert_eq!(tried.json["subject"], "this is a test, and nothing is wrong");
        tickets.becomes(Manner::Fails);
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        let first = until("it is tried", 60.s(), || {
            let attempts = tickets.attempts();
            attempts.into_iter().find(|it| it.kind() == "incident.firing").ok_or_else(|| "nothing".to_owned())
        })?;
        collector.kill()?;
        write("body", "{\"other\": 1}")?;
        collector.rewrite(METHOD, "{{ 'PATCH' }}")?;
        collector.rewrite("{{ id }}\"", "another\"")?;
        tickets.becomes(Manner::Accepts);
        collector.serve()?;
        let taken = tickets.hears("the same", 60.s(), |it| it.id == first.id)?;
        assert_eq!((&taken.body, taken.method.as_str()), (&first.body, "PUT"));
        assert!(
            taken.json["subject"].as_str().is_some_and(|it| it.contains("answers with status 500")),
            "{}",
            taken.body
        );
        assert_eq!((taken.header("x-team"), taken.header("authorization")), (Some("shop"), Some("Bearer T0PS3CRET")));
        let about = format!("critical of {}", first.id);
        assert_eq!((first.header("x-about"), taken.header("x-about")), (Some(&*about), Some(&*about)));
        web.does("status 200")?;
        let over = tickets.hears("the end in other words", 60.s(), |it| it.json["other"] == 1)?;
        assert_eq!((over.method.as_str(), over.header("x-about")), ("PATCH", Some("critical of another")));
        assert!(tickets.is_believed_elsewhere()? >= 3);
        let said = [collector.command(&["receiver", "list"])?, collector.log()].concat();
        assert!(!said.contains("T0PS3CRET"), "{said}");
        agent.stop().map(drop)
    });
}
