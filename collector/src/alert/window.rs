//! Time intervals: when a route is mute, in the zone of whoever is told. Alertmanager's words and meaning.

use std::ops::RangeInclusive;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use tickbird_shared::Timestamp;

/// A named interval: one of its spans is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Its name in the configuration.
    pub name: String,
    /// When it holds.
    pub spans: Vec<Span>,
}

/// Everything that is named has to hold; what names nothing always does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Minutes of the day, the end excluded.
    pub times: Vec<(u16, u16)>,
    /// Days from Sunday, which is 0.
    pub weekdays: Vec<RangeInclusive<i8>>,
    /// Days of the month from 1; from its end they are negative.
    pub days_of_month: Vec<RangeInclusive<i8>>,
    /// Months from 1.
    pub months: Vec<RangeInclusive<i8>>,
    /// Years.
    pub years: Vec<RangeInclusive<i16>>,
    /// Where the clock hangs.
    pub zone: TimeZone,
}

impl Default for Span {
    fn default() -> Self {
        Self {
            times: Vec::new(),
            weekdays: Vec::new(),
            days_of_month: Vec::new(),
            months: Vec::new(),
            years: Vec::new(),
            zone: TimeZone::UTC,
        }
    }
}

impl Window {
    /// Whether it holds at a moment.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.spans.iter().any(|it| it.holds(now))
    }
}

impl Span {
    fn holds(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone());
        let minute = local.hour().unsigned_abs() as u16 * 60 + local.minute().unsigned_abs() as u16;
        let last = local.days_in_month();
        let day = |range: &RangeInclusive<i8>| {
            // -1 is the last day; what lies before the first, or behind the last, is cut.
            let of = |it: i8| if it < 0 { (last + 1 + it).max(1) } else { it.min(last) };
            let begins_too_late = *range.start() > last;
            !begins_too_late && (of(*range.start())..=of(*range.end())).contains(&local.day())
        };
        fn any<T>(ranges: &[T], holds: impl FnMut(&T) -> bool) -> bool {
            ranges.is_empty() || ranges.iter().any(holds)
        }
        any(&self.times, |(from, to)| (*from..*to).contains(&minute))
            && any(&self.weekdays, |it| it.contains(&local.weekday().to_sunday_zero_offset()))
            && any(&self.days_of_month, day)
            && any(&self.months, |it| it.contains(&local.month()))
            && any(&self.years, |it| it.contains(&local.year()))
    }
}

/// `09:00` as minutes of the day; the day ends at `24:00`.
pub fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number =
        |it: &str| (it.len() == 2 && it.bytes().all(|b| b.is_ascii_digit())).then(|| it.parse::<u16>().ok())?;
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60 && (hour < 24 || hour == 24 && minute == 0)).then_some(hour * 60 + minute)
}

/// `monday`, or its days from Sunday.
pub fn weekday(text: &str) -> Option<i8> {
    let name = |day: Weekday| match day {
        Weekday::Sunday => "sunday",
        Weekday::Monday => "monday",
        Weekday::Tuesday => "tuesday",
        Weekday::Wednesday => "wednesday",
        Weekday::Thursday => "thursday",
        Weekday::Friday => "friday",
        Weekday::Saturday => "saturday",
    };
    let text = text.to_ascii_lowercase();
    let found = Weekday::Sunday.cycle_forward().take(7).find(|it| name(*it) == text);
    found.map(Weekday::to_sunday_zero_offset)
}

/// `january`, or its number.
pub fn month(text: &str) -> Option<i8> {
    const NAMES: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let text = text.to_ascii_lowercase();
    let named = NAMES.iter().position(|it| *it == text).map(|at| at as i8 + 1);
    named.or_else(|| text.parse().ok().filter(|it| (1..=12).contains(it)))
}

/// `monday:friday` or `monday`, each end read by `one`; none when an end cannot be read or they are the wrong way round.
pub fn range<T: PartialOrd + Copy>(text: &str, one: impl Fn(&str) -> Option<T>) -> Option<RangeInclusive<T>> {
    let (from, to) = text.split_once(':').unwrap_or((text, text));
    let (from, to) = (one(from.trim())?, one(to.trim())?);
    (from <= to).then_some(from..=to)
}

/// A day of the month from 1 to 31, or from the end of it, -1 to -31.
pub fn day(text: &str) -> Option<i8> {
    text.parse().ok().filter(|it: &i8| *it != 0 && (-31..=31).contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn days(text: &str) -> Span {
        // From the beginning to the end of the month is no range of numbers.
        let (from, to) = text.split_once(':').expect("a range");
        Span { days_of_month: vec![day(from).expect("a day")..=day(to).expect("a day")], ..Span::default() }
    }

    #[test]
    fn nights_and_weekends_hold_in_their_zone_also_when_clocks_change() {
        let zone = TimeZone::get("Europe/Berlin").expect("the host has zones");
        let night = Span { times: vec![(22 * 60, 24 * 60), (0, 6 * 60)], zone: zone.clone(), ..Span::default() };
        let weekend = Span { weekdays: vec![6..=6, 0..=0], zone, ..Span::default() };
        let window = Window { name: "offhours".into(), spans: vec![night, weekend] };
        for (time, holds) in [
            ("2026-11-24T20:59:00Z", false), // Tuesday 21:59 in winter
            ("2026-11-24T21:00:00Z", true),
            ("2026-11-25T04:59:59Z", true),
            ("2026-11-25T05:00:00Z", false),
            ("2026-07-14T19:59:59Z", false), // the same in summer
            ("2026-07-14T20:00:00Z", true),
            ("2026-11-21T12:00:00Z", true),  // Saturday
            ("2026-11-22T22:59:59Z", true),  // Sunday 23:59
            ("2026-11-23T12:00:00Z", false), // Monday
        ] {
            assert_eq!(window.holds(at(time)), holds, "{time}");
        }
    }

    #[test]
    fn an_hour_that_the_clock_skips_never_holds_and_one_that_it_repeats_holds_twice() {
        let zone = TimeZone::get("Europe/Berlin").expect("the host has zones");
        let minutes = |times: &[(u16, u16)], from: &str, hours: i64| -> usize {
            let span = Span { times: times.to_vec(), zone: zone.clone(), ..Span::default() };
            let moments = (0..hours * 60).map(|it| at(from) + std::time::Duration::from_secs(60 * it.unsigned_abs()));
            moments.filter(|it| span.holds(*it)).count()
        };
        let (second, night) = ([(120, 180)], [(0, 6 * 60)]);
        let (skips, repeats) = ("2026-03-28T23:00:00Z", "2026-10-24T22:00:00Z"); // Midnight in Berlin.
        assert_eq!([minutes(&second, skips, 23), minutes(&second, repeats, 25)], [0, 120]);
        assert_eq!([minutes(&night, skips, 23), minutes(&night, repeats, 25)], [5 * 60, 7 * 60]);
    }

    #[test]
    fn days_of_a_month_count_from_both_ends_and_end_with_it() {
        let holds = |text: &str, times: &[&str]| times.iter().map(|it| days(text).holds(at(it))).collect::<Vec<_>>();
        let february = ["2026-02-01T12:00:00Z", "2026-02-25T12:00:00Z", "2026-02-28T12:00:00Z"];
        assert_eq!(holds("-4:-1", &february), [false, true, true]);
        assert_eq!(holds("1:5", &february), [true, false, false]);
        assert_eq!(holds("25:31", &february), [false, true, true]);
        assert_eq!(holds("30:31", &february), [false, false, false], "a day that this month has not");
        assert_eq!(holds("-31:-28", &february), [true, false, false]);
    }

    #[test]
    fn months_and_years_and_everything_together() {
        let span = Span {
            months: vec![range("december", month).expect("a month")],
            years: vec![2026..=2027],
            times: vec![(9 * 60, 17 * 60)],
            ..Span::default()
        };
        assert!(span.holds(at("2026-12-24T09:00:00Z")) && !span.holds(at("2026-12-24T17:00:00Z")));
        assert!(!span.holds(at("2026-11-24T09:00:00Z")) && !span.holds(at("2028-12-24T09:00:00Z")));
        assert!(Span::default().holds(at("2026-12-24T09:00:00Z")), "what names nothing always holds");
    }

    #[test]
    fn words_are_read_and_what_is_none_is_refused() {
        assert_eq!([minutes("00:00"), minutes("09:30"), minutes("24:00")], [Some(0), Some(570), Some(1440)]);
        for text in ["9:30", "24:01", "12:60", "noon", "", "+1:00", "12:5"] {
            assert_eq!(minutes(text), None, "{text}");
        }
        assert_eq!(range("Monday:friday", weekday), Some(1..=5));
        assert_eq!(range("friday:monday", weekday), None, "the week begins with Sunday");
        assert_eq!([range("march", month), range("5:august", month)], [Some(3..=3), Some(5..=8)]);
        assert_eq!([day("0"), day("32"), day("-32"), day("x")], [None; 4]);
    }
}
