use proptest::prelude::*;
use tickbird_shared::Severity::{self, Critical, Warning};

use super::*;

const LOOKS: Holds = Holds::both(Hold::Looks(3));
const SPAN: Holds =
    Holds { warning: Hold::For(Duration::from_secs(60)), critical: Hold::For(Duration::from_secs(30)), clearing: 3 };

/// One letter a look: `.` well, `~` between the clearing bound and the bound, `w` and `c` over, `?` blind, `-` not yet,
/// `r` a range that is certainly over, `s` a range that is not.
fn sight(letter: char) -> Sight {
    let known = |over, stays| Sight::Known { over, stays };
    match letter {
        '.' => known(None, None),
        '~' => known(None, Some(Warning)),
        'w' => known(Some(Warning), Some(Warning)),
        'e' => known(Some(Warning), Some(Critical)),
        'c' => known(Some(Critical), Some(Critical)),
        'r' => Sight::Between { over: Some(Warning) },
        's' => Sight::Between { over: None },
        '-' => Sight::NotYet,
        _ => Sight::Blind,
    }
}

/// The steps of a run of looks, `every` seconds apart: `3 began warning, 6 cleared warning`.
fn told(looks: &str, holds: &Holds, every: u64) -> String {
    let mut level = Level::default();
    let mut told = Vec::new();
    for (index, letter) in looks.chars().enumerate() {
        let step = level.look(sight(letter), holds, Duration::from_secs(index as u64 * every));
        let words = match step {
            Step::None => continue,
            Step::Began(it) => format!("began {it}"),
            Step::Worsened(it) => format!("worsened {it}"),
            Step::Eased(it) => format!("eased {it}"),
            Step::Cleared(it) => format!("cleared {it}"),
            Step::Lost => "lost".to_owned(),
            Step::Back => "back".to_owned(),
        };
        told.push(format!("{} {words}", index + 1));
    }
    told.join(", ")
}

#[test]
fn transitions() {
    for (looks, wanted) in [
        ("ww.ww.ww.", ""),
        ("www", "3 began warning"),
        ("www..www", "3 began warning"),
        ("www...", "3 began warning, 6 cleared warning"),
        ("www~~~~~~", "3 began warning"),
        ("www..~..~...", "3 began warning, 12 cleared warning"),
        ("ccc", "3 began critical"),
        ("wwcccc", "3 began warning, 5 worsened critical"),
        ("wwccwcc", "3 began warning"),
        ("cccwww", "3 began critical, 6 eased warning"),
        ("ccceee", "3 began critical"),
        ("cccw.w", "3 began critical, 6 eased warning"),
        ("ccc......", "3 began critical, 6 cleared critical"),
        ("rrr", "3 began warning"),
        ("rrrsssss", "3 began warning, 6 lost"),
        ("rrr????", "3 began warning, 6 lost"),
        ("www???w", "3 began warning, 6 lost, 7 back"),
        ("www???...", "3 began warning, 6 lost, 7 back, 9 cleared warning"),
        ("www???ccc", "3 began warning, 6 lost, 7 back, 9 worsened critical"),
        ("www??w??w", "3 began warning"),
        ("w-w-w", "5 began warning"),
        ("www.-.-.", "3 began warning, 8 cleared warning"),
        ("www.?..?..", "3 began warning"),
        ("w?w?w", "5 began warning"),
        ("ww???w", ""),
        ("wwsw", ""),
        ("???", ""),
        ("---------", ""),
    ] {
        assert_eq!(told(looks, &LOOKS, 1), wanted, "{looks}");
    }
}

#[test]
fn a_time_counts_only_while_it_is_seen_to_be_over() {
    assert_eq!(told("wwwwwww", &SPAN, 10), "7 began warning");
    assert_eq!(told("wwwwww", &SPAN, 10), "");
    assert_eq!(told("www?wwwww", &SPAN, 10), "9 began warning", "two of the steps were not seen");
    assert_eq!(told("www.wwwwwww", &SPAN, 10), "11 began warning");
    assert_eq!(told("cccc", &SPAN, 10), "4 began critical");
    assert_eq!(told("w", &Holds::both(Hold::For(Duration::ZERO)), 10), "1 began warning");
}

#[test]
fn some_of_the_last_looks() {
    let holds = Holds::both(Hold::Of { over: 3, looks: 5 });
    assert_eq!(told("w.w.w", &holds, 10), "5 began warning");
    assert_eq!(told("w..w..w", &holds, 10), "");
    assert_eq!(told("ww.w...", &holds, 10), "4 began warning, 7 cleared warning");
    assert_eq!(told("www...w", &holds, 10), "3 began warning, 6 cleared warning");
    assert_eq!(told("ww....w", &holds, 10), "");
}

/// The rules said the long way round: over the whole history at each look.
struct Model {
    history: Vec<char>,
    firing: Option<Severity>,
}

impl Model {
    fn look(&mut self, letter: char) -> Option<Severity> {
        if letter != '-' {
            self.history.push(letter);
        }
        let over = |letter: &char| match letter {
            'c' => Some(Critical),
            'w' | 'e' | 'r' => Some(Warning),
            _ => None,
        };
        let stays = |letter: &char| match letter {
            '.' => None,
            '~' | 'w' => Some(Warning),
            _ => Some(Critical),
        };
        let recent: Vec<_> = self.history.iter().rev().take_while(|it| over(it).is_some()).collect();
        let last = self.history.last().filter(|_| letter != '-').and_then(over);
        let crossed =
            |least| recent.iter().take_while(|it| over(it) >= Some(least)).count() >= 3 && last >= Some(least);
        let reached = if crossed(Critical) { Some(Critical) } else { crossed(Warning).then_some(Warning) };
        if reached > self.firing {
            self.firing = reached;
            return self.firing;
        }
        let three: Vec<_> = self.history.iter().rev().take(3).collect();
        if three.len() == 3 && letter != '-' && three.iter().all(|it| !"rs?".contains(**it) && stays(it) < self.firing)
        {
            self.firing = three.into_iter().map(stays).max().flatten();
        }
        self.firing
    }
}

fn looks(letters: &'static str) -> impl Strategy<Value = Vec<char>> {
    proptest::collection::vec(proptest::sample::select(letters.chars().collect::<Vec<_>>()), 0..60)
}

proptest! {
    #[test]
    fn never_fires_before_its_hold(looks in looks(".~wcr-s?"), every in 1_u64..30) {
        let mut level = Level::default();
        let mut over_since: Option<u64> = None;
        for (index, letter) in looks.into_iter().enumerate() {
            let now = index as u64 * every;
            match letter {
                'w' | 'c' | 'r' => over_since = over_since.or(Some(now)),
                '.' | '~' | 's' => over_since = None,
                _ => (),
            }
            if let Step::Began(_) = level.look(sight(letter), &SPAN, Duration::from_secs(now)) {
                let since = over_since.expect("it is over");
                prop_assert!(now - since >= 30, "fired after {} s", now - since);
            }
        }
    }

    #[test]
    fn nothing_but_a_known_value_clears(looks in looks("wcr?s-")) {
        let mut level = Level::default();
        let mut fired = None;
        for (index, letter) in looks.into_iter().enumerate() {
            level.look(sight(letter), &LOOKS, Duration::from_secs(index as u64));
            prop_assert!(level.firing().is_some() || fired.is_none());
            fired = fired.or(level.firing());
        }
    }

    #[test]
    fn what_was_never_over_never_fires(looks in looks(".~?s-")) {
        prop_assert_eq!(told(&looks.into_iter().collect::<String>(), &LOOKS, 1), "");
    }

    /// Without blind looks and undecided ranges, which the model does not speak of.
    #[test]
    fn fires_and_clears_as_the_model_says(looks in looks(".~wec-")) {
        let mut level = Level::default();
        let mut model = Model { history: Vec::new(), firing: None };
        for (index, letter) in looks.iter().enumerate() {
            level.look(sight(*letter), &LOOKS, Duration::from_secs(index as u64));
            let wanted = model.look(*letter);
            prop_assert_eq!(level.firing(), wanted, "at look {} of {:?}", index + 1, looks.iter().collect::<String>());
        }
    }

    #[test]
    fn began_and_cleared_alternate(looks in looks(".~wecr?s-")) {
        let mut level = Level::default();
        let mut firing = false;
        for (index, letter) in looks.into_iter().enumerate() {
            let step = level.look(sight(letter), &LOOKS, Duration::from_secs(index as u64));
            match step {
                Step::Began(_) => {
                    prop_assert!(!firing);
                    firing = true;
                }
                Step::Cleared(_) => {
                    prop_assert!(firing);
                    firing = false;
                }
                Step::None => (),
                _ => prop_assert!(firing),
            }
            prop_assert_eq!(level.firing().is_some(), firing);
        }
    }
}
