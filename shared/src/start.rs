//! Which opening of its buffer a batch comes from: what tells a buffer that goes on from one that was copied or put back.
//!
//! An agent opens its buffer at each start, and writes the start down before it sends anything. A start says of each one
//! before it how far each lane had come when it was over. So whoever knows that a lane was received up to `through` from
//! one start can tell of every other whether it holds all of that ([`Start::holds_of`]); a copy of a buffer, and one that
//! was put back to an older state, do not hold what was sent since.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Earlier starts that are told: an agent that started more often since it was last heard begins a new epoch.
pub const MAX_EARLIER: usize = 16;
/// Highest number of a start, and highest sequence: stores have signed integers.
const MAX_NUMBER: u64 = i64::MAX as u64 - 1;

/// A start of a buffer, as each of its batches names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Counts the starts of one epoch, from 1.
    pub number: u64,
    /// Tells it from a start of the same number in another copy.
    pub word: StartWord,
    /// Last sequence that the lane had ever given out when it began.
    pub opened: u64,
    /// The starts before it, newest first; at most [`MAX_EARLIER`].
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_most_all_told")]
    pub before: Vec<EarlierStart>,
}

/// A start that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlierStart {
    /// Its word.
    pub word: StartWord,
    /// Last sequence that the lane had ever given out when it began.
    pub opened: u64,
}

/// What a start drew at random: 16 digits of lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartWord(u64);

/// A text that is not 16 digits of lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the word of a start is 16 lower-case hexadecimal digits")]
pub struct NotAStartWord;

impl Start {
    /// Whether its numbers are within their bounds.
    pub fn is_sound(&self) -> bool {
        let opened = self.before.iter().map(|it| it.opened).chain([self.opened]);
        (1..=MAX_NUMBER).contains(&self.number) && opened.into_iter().all(|it| it <= MAX_NUMBER)
    }

    /// Up to which sequence its buffer holds, or held, everything that the start of this word gave out; all of it when
    /// that is the same start. Nothing when it does not go on from that one.
    pub fn holds_of(&self, word: StartWord) -> Option<u64> {
        if word == self.word {
            return Some(u64::MAX);
        }
        let mut ended = self.opened;
        for earlier in &self.before {
            if earlier.word == word {
                return Some(ended);
            }
            ended = earlier.opened;
        }
        None
    }
}

impl StartWord {
    /// The word of these bits.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for StartWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for StartWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartWord({self})")
    }
}

impl TryFrom<&str> for StartWord {
    type Error = NotAStartWord;

    fn try_from(text: &str) -> Result<Self, NotAStartWord> {
        let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        u64::from_str_radix(text, 16).ok().filter(|_| is_hex).map(Self).ok_or(NotAStartWord)
    }
}

impl Serialize for StartWord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StartWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::try_from(&*text).map_err(D::Error::custom)
    }
}

/// More than there may be is an error at once, and costs no memory.
fn at_most_all_told<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EarlierStart>, D::Error> {
    struct Bounded;
    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<EarlierStart>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {MAX_EARLIER} starts")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
            let mut starts = Vec::new();
            while let Some(start) = array.next_element()? {
                if starts.len() == MAX_EARLIER {
                    return Err(A::Error::invalid_length(MAX_EARLIER + 1, &self));
                }
                starts.push(start);
            }
            Ok(starts)
        }
    }
    deserializer.deserialize_seq(Bounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earlier(bits: u64, opened: u64) -> EarlierStart {
        EarlierStart { word: StartWord::new(bits), opened }
    }

    fn start() -> Start {
        Start { number: 7, word: StartWord::new(7), opened: 100, before: vec![earlier(6, 80), earlier(5, 0)] }
    }

    #[test]
    fn a_start_holds_of_each_before_it_what_was_there_when_that_one_ended() {
        let of = |bits| start().holds_of(StartWord::new(bits));
        assert_eq!([of(7), of(6), of(5), of(4)], [Some(u64::MAX), Some(100), Some(80), None]);
    }

    #[test]
    fn a_start_comes_back_as_it_was_written() {
        let text = serde_json::to_string(&start()).expect("written");
        let before = r#"[{"word":"0000000000000006","opened":80},{"word":"0000000000000005","opened":0}]"#;
        assert_eq!(text, format!(r#"{{"number":7,"word":"0000000000000007","opened":100,"before":{before}}}"#));
        assert_eq!(serde_json::from_str::<Start>(&text).expect("read"), start());
        let first = Start { before: Vec::new(), ..start() };
        assert!(!serde_json::to_string(&first).expect("written").contains("before"));
    }

    #[test]
    fn a_word_has_one_form_and_numbers_have_bounds() {
        for text in ["", "7", "000000000000000G", "000000000000000A", "+000000000000007", "00000000000000007"] {
            assert_eq!(StartWord::try_from(text), Err(NotAStartWord), "{text}");
        }
        let word = StartWord::new(u64::MAX - 1);
        assert_eq!(StartWord::try_from(&*word.to_string()), Ok(word));
        assert!(start().is_sound());
        assert!(!Start { number: 0, ..start() }.is_sound());
        assert!(!Start { number: MAX_NUMBER + 1, ..start() }.is_sound());
        assert!(!Start { opened: MAX_NUMBER + 1, ..start() }.is_sound());
        assert!(!Start { before: vec![earlier(1, MAX_NUMBER + 1)], ..start() }.is_sound());
    }

    #[test]
    fn more_earlier_starts_than_are_told_are_refused() {
        let read = |count: usize| {
            let text = serde_json::to_string(&Start { before: vec![earlier(1, 1); count], ..start() });
            serde_json::from_str::<Start>(&text.expect("written")).map(|it| it.before.len())
        };
        assert_eq!(read(MAX_EARLIER).expect("read"), MAX_EARLIER);
        let error = read(MAX_EARLIER + 1).expect_err("refused").to_string();
        assert!(error.contains("at most 16"), "{error}");
    }
}
