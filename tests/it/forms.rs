//! Receivers that understand another form than our own.

use tickbird_tests::{Agent, Application, Collector, Seconds, StageError, Webhook, alone};

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
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let base = web.url().replace("/health", "");
        let pages = ["shelf", "till", "table"].map(|page| format!("{base}/{page}"));
        let mut agent = Agent::asking(stage, &collector, &pages.each_ref().map(String::as_str))?;
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
