//! Which of a receiver's recipients the server puts off, and who has a letter already.
//!
//! A server that knows no greylisted stranger yet, or has a mailbox that is full, says "later" of one recipient and yes to the others. They get
//! the letter at once, and the one is asked again with the backoff of any other attempt. What comes next of the same incident goes to the
//! others meanwhile, and to the one after it has what came before: each gets in order what is about one thing, and nobody waits for anybody
//! else. Whoever has been put off for longer than greylisting takes is left out, of what comes later at once.
//!
//! Kept in memory: after a restart those who have a letter get it again, which is why such an attempt counts as uncertain.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::notify::{Answer, NotifyError};

/// Who has what is forgotten after so long, and that somebody was put off: the letter has long been settled, or its server was away; a mailbox
/// that is full for longer is waited for anew where letters are rare.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recipients {
    /// Since when each is put off, and when that was said last.
    put_off: BTreeMap<String, (Instant, Instant)>,
    /// Letters that some have, by their id.
    partly: BTreeMap<String, Partly>,
}

#[derive(Debug)]
struct Partly {
    since: Instant,
    /// Of the last yes.
    code: u16,
    had_by: BTreeSet<String>,
    /// What it is about.
    thread: Option<String>,
    /// Who is waited for, and what was said of them last.
    awaited: BTreeMap<String, u16>,
}

/// Who is asked to take a letter, and who is not yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Those who do not have it.
    pub(super) now: Vec<String>,
    /// Those who are waited for with an earlier letter about the same thing, and what was said of them last.
    later: Vec<(String, u16)>,
}

impl Recipients {
    /// Those who do not have the letter yet.
    pub(super) fn without(&self, id: &str, thread: Option<&str>, all: impl Iterator<Item = String>) -> Asked {
        let had_by = self.partly.get(id).map(|it| &it.had_by);
        let earlier = self.partly.iter().take_while(|it| it.0.as_str() < id).map(|it| it.1);
        let earlier: Vec<_> = earlier.filter(|it| thread.is_some() && it.thread.as_deref() == thread).collect();
        let mut asked = Asked::default();
        for recipient in all.filter(|it| had_by.is_none_or(|those| !those.contains(it))) {
            match earlier.iter().find_map(|it| it.awaited.get(&recipient)) {
                Some(code) => asked.later.push((recipient, *code)),
                None => asked.now.push(recipient),
            }
        }
        asked
    }

    /// Letters that wait for some only: what follows them need not.
    pub(super) fn partly(&self) -> Vec<String> {
        self.partly.keys().cloned().collect()
    }

    /// Letters that wait for nobody any more, whatever became of them.
    pub(super) fn forget(&mut self, ids: &[String]) {
        ids.iter().for_each(|id| _ = self.partly.remove(id));
    }

    /// What an attempt comes to after which the server had taken the letter, by `code`, for all who were `asked` but those that it `refused`, by
    /// their place. Without a code it was taken for nobody. Who has been put off for as long as the patience is left out.
    ///
    /// # Errors
    /// When somebody is waited for, or nobody has it.
    pub(super) fn after(
        &mut self,
        (id, thread): (&str, Option<&str>),
        Asked { now: asked, later }: &Asked,
        refused: &[(usize, u16)],
        code: Option<u16>,
        (now, patience): (Instant, Duration),
    ) -> Result<Answer, NotifyError> {
        self.partly.retain(|_, it| now.duration_since(it.since) < REMEMBERED.max(patience * 2));
        let refused: BTreeMap<&str, u16> =
            refused.iter().filter_map(|(index, code)| Some((asked.get(*index)?.as_str(), *code))).collect();
        let mut awaited = later.clone();
        for recipient in asked {
            match refused.get(recipient.as_str()) {
                Some(code) if *code < 500 => {
                    let (since, last) = self.put_off.entry(recipient.clone()).or_insert((now, now));
                    // What was said a day ago is another reason than that of today.
                    if now.duration_since(*last) >= REMEMBERED {
                        *since = now;
                    }
                    *last = now;
                    if now.duration_since(*since) < patience {
                        awaited.push((recipient.clone(), *code));
                    }
                }
                Some(_) | None => _ = self.put_off.remove(recipient),
            }
        }
        if let Some(code) = code {
            let new = || Partly {
                since: now,
                code,
                had_by: BTreeSet::new(),
                thread: thread.map(str::to_owned),
                awaited: BTreeMap::new(),
            };
            let partly = self.partly.entry(id.to_owned()).or_insert_with(new);
            partly.code = code;
            partly.had_by.extend(asked.iter().filter(|it| !refused.contains_key(it.as_str())).cloned());
        }
        if let Some(partly) = self.partly.get_mut(id) {
            partly.awaited = awaited.iter().cloned().collect();
        }
        let left_out = || refused.iter().map(|(recipient, code)| ((*recipient).to_owned(), *code)).collect::<Vec<_>>();
        match self.partly.get(id) {
            Some(_) if !awaited.is_empty() => Err(NotifyError::PutOff { recipients: awaited, others_have_it: true }),
            Some(partly) => {
                let answer = Answer { code: partly.code, left_out: left_out() };
                self.partly.remove(id);
                Ok(answer)
            }
            None => {
                // One who may take it later counts more than all who never will.
                let (mut recipients, gone): (Vec<_>, Vec<_>) = left_out().into_iter().partition(|it| it.1 < 500);
                if recipients.is_empty() {
                    recipients = gone;
                }
                Err(NotifyError::PutOff { recipients, others_have_it: false })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(600);
    const BOTH: [&str; 2] = ["a@x", "b@x"];

    fn ask(
        of: &mut Recipients,
        id: &str,
        refused: &[(&str, u16)],
        now: Instant,
    ) -> (Vec<String>, Result<String, String>) {
        let thread = Some("of one thing");
        let asked = of.without(id, thread, BOTH.into_iter().map(str::to_owned));
        let place = |name: &str| asked.now.iter().position(|it| it == name);
        let refused: Vec<_> = refused.iter().filter_map(|(name, code)| Some((place(name)?, *code))).collect();
        let code = (refused.len() < asked.now.len()).then_some(250);
        let result = of.after((id, thread), &asked, &refused, code, (now, PATIENCE));
        (asked.now, result.map(|it| it.to_string()).map_err(|it| it.to_string()))
    }

    #[test]
    fn who_takes_it_has_it_once_and_who_is_put_off_is_waited_for() {
        let (mut of, start) = (Recipients::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let later = Err("puts off b@x (451); the others have it".to_owned());
        assert_eq!(ask(&mut of, "m1", &[("b@x", 451)], at(0)), (BOTH.map(str::to_owned).into(), later.clone()));
        assert_eq!(ask(&mut of, "m1", &[("b@x", 451)], at(300)), (vec!["b@x".to_owned()], later));
        assert_eq!(ask(&mut of, "m1", &[], at(420)), (vec!["b@x".to_owned()], Ok("answered 250".to_owned())));
        assert!(of.partly.is_empty() && of.put_off.is_empty());
    }

    #[test]
    fn who_stays_put_off_holds_up_nobody_for_longer_and_later_letters_not_at_all() {
        let (mut of, start) = (Recipients::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let left_out = Ok("answered 250, but not for b@x (452)".to_owned());
        assert!(ask(&mut of, "m1", &[("b@x", 452)], at(0)).1.is_err());
        assert!(ask(&mut of, "m1", &[("b@x", 452)], at(599)).1.is_err());
        assert_eq!(ask(&mut of, "m1", &[("b@x", 452)], at(600)).1, left_out);
        assert_eq!(ask(&mut of, "m2", &[("b@x", 452)], at(601)), (BOTH.map(str::to_owned).into(), left_out));
        assert!(
            ask(&mut of, "m2b", &[("b@x", 452)], at(601 + 3_600)).1.is_err(),
            "of an hour ago nobody knows the reason"
        );
        of.forget(&["m2b".into()]);
        // It is emptied, and fills up again.
        assert_eq!(ask(&mut of, "m3", &[], at(4_700)).1, Ok("answered 250".to_owned()));
        assert!(ask(&mut of, "m4", &[("b@x", 452)], at(4_800)).1.is_err());
    }

    #[test]
    fn what_comes_next_goes_to_the_others_meanwhile_and_to_who_is_waited_for_in_order() {
        let (mut of, start) = (Recipients::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let (a, b) = (vec!["a@x".to_owned()], vec!["b@x".to_owned()]);
        let later = Err("puts off b@x (451); the others have it".to_owned());
        assert_eq!(ask(&mut of, "m1", &[("b@x", 451)], at(0)), (BOTH.map(str::to_owned).into(), later.clone()));
        assert_eq!(ask(&mut of, "m2", &[], at(1)), (a.clone(), later.clone()), "who waits is not asked");
        assert_eq!(ask(&mut of, "m3", &[], at(2)), (a, later.clone()));
        let of_another = of.without("m4", Some("of another"), BOTH.into_iter().map(str::to_owned));
        assert_eq!(of_another.now, BOTH, "which has an order of its own");
        assert_eq!(of.partly(), ["m1", "m2", "m3"]);
        assert_eq!(ask(&mut of, "m1", &[("b@x", 451)], at(60)), (b.clone(), later));
        for id in ["m1", "m2"] {
            assert_eq!(ask(&mut of, id, &[], at(90)), (b.clone(), Ok("answered 250".to_owned())));
        }
        of.forget(&["m3".into()]);
        assert!(of.partly().is_empty());
    }

    #[test]
    fn who_is_gone_is_left_out_and_where_nobody_has_it_nothing_is_settled() {
        let (mut of, now) = (Recipients::default(), Instant::now());
        assert_eq!(ask(&mut of, "m1", &[("a@x", 550)], now).1, Ok("answered 250, but not for a@x (550)".to_owned()));
        let nobody = ask(&mut of, "m2", &[("a@x", 550), ("b@x", 451)], now).1;
        assert_eq!(nobody, Err("puts off b@x (451)".to_owned()));
        let long_after = now + PATIENCE * 2;
        assert_eq!(ask(&mut of, "m2", &[("a@x", 550), ("b@x", 451)], long_after).1, nobody);
        let gone = ask(&mut of, "m3", &[("a@x", 550), ("b@x", 551)], now).1;
        assert_eq!(gone, Err("refuses a@x (550), b@x (551)".to_owned()));
    }

    #[test]
    fn who_has_it_is_known_for_as_long_as_somebody_is_waited_for() {
        let (mut of, start, patience) = (Recipients::default(), Instant::now(), REMEMBERED);
        let mut tries = |second| {
            let asked = of.without("m1", None, BOTH.into_iter().map(str::to_owned));
            let (last, code) = (asked.now.len() - 1, (asked.now.len() > 1).then_some(250));
            let now = (start + Duration::from_secs(second), patience);
            of.after(("m1", None), &asked, &[(last, 451)], code, now).map(|it| it.to_string())
        };
        assert!(tries(0).is_err() && tries(3_599).is_err());
        assert_eq!(tries(3_600).ok().as_deref(), Some("answered 250, but not for b@x (451)"), "the other has it still");
    }

    #[test]
    fn who_has_what_is_forgotten_after_an_hour() {
        let (mut of, now) = (Recipients::default(), Instant::now());
        assert!(ask(&mut of, "m1", &[("b@x", 451)], now).1.is_err());
        assert!(ask(&mut of, "m2", &[("b@x", 451)], now + REMEMBERED).1.is_err());
        assert_eq!(of.partly.keys().collect::<Vec<_>>(), ["m2"]);
    }
}
