//! [`Coverage`]: how fast counters rise, over the last seconds, the last minute, the last hour.

use std::collections::VecDeque;
use std::fmt;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use serde::{Serialize, Serializer};

/// A reading of all counters, with names that never change their order.
pub type Reading = Vec<(String, u64)>;

/// The time that the first of the averages is over.
const SOON: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Readings of the last minute, one for about each second, and of the last hour, one for about each minute.
#[derive(Default)]
pub struct Coverage {
    seconds: VecDeque<(Instant, Vec<u64>)>,
    minutes: VecDeque<(Instant, Vec<u64>)>,
}

/// How often something happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    /// Averages over the last 5 seconds, minute and hour, or since the start if that is shorter.
    pub per_second_5s: f64,
    pub per_second_1m: f64,
    pub per_second_1h: f64,
    pub total: u64,
}

/// What `coverage/show` says.
pub struct Report(pub Vec<Row>);

impl Coverage {
    /// Takes note of the counters. Call about once a second.
    pub fn note(&mut self, now: Instant, reading: &Reading) {
        let counts = || reading.iter().map(|(_, count)| *count).collect::<Vec<_>>();
        keep(&mut self.seconds, now, MINUTE, Duration::ZERO, counts);
        keep(&mut self.minutes, now, HOUR, MINUTE, counts);
    }

    /// How fast the counters rose until now, when they are at `reading`.
    pub fn report(&self, now: Instant, reading: Reading) -> Report {
        let rate = |kept: &VecDeque<(Instant, Vec<u64>)>, over: Duration, index: usize, count: u64| {
            // The oldest that is not too old; before the first there was nothing.
            let past = kept.iter().find(|(at, _)| now.saturating_duration_since(*at) <= over);
            let (at, before) = past.map_or((now, count), |(at, counts)| (*at, counts.get(index).copied().unwrap_or(0)));
            let seconds = now.saturating_duration_since(at).as_secs_f64();
            if seconds > 0.0 { count.saturating_sub(before) as f64 / seconds } else { 0.0 }
        };
        let row = |(index, (name, total)): (usize, (String, u64))| Row {
            name,
            per_second_5s: rate(&self.seconds, SOON + SOON / 10, index, total),
            per_second_1m: rate(&self.seconds, MINUTE, index, total),
            per_second_1h: rate(&self.minutes, HOUR, index, total),
            total,
        };
        Report(reading.into_iter().enumerate().map(row).collect())
    }
}

/// Adds a reading if the last is `apart` ago, and forgets those older than `age`.
fn keep(
    kept: &mut VecDeque<(Instant, Vec<u64>)>,
    now: Instant,
    age: Duration,
    apart: Duration,
    reading: impl Fn() -> Vec<u64>,
) {
    if kept.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= apart) {
        kept.push_back((now, reading()));
    }
    while kept.front().is_some_and(|(first, _)| now.saturating_duration_since(*first) > age) {
        kept.pop_front();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().filter(|row| row.total > 0).map(|row| row.name.as_str()).collect();
        let hash = FixedState::default().hash_one(&names) as u32;
        writeln!(f, "Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash={hash:08x}:")?;
        for Row { name, per_second_5s, per_second_1m, per_second_1h, total } in
            self.0.iter().filter(|row| row.total > 0)
        {
            writeln!(
                f,
                "{name:<24} {per_second_5s:>5.1}/sec {per_second_1m:>9.3}/sec {per_second_1h:>13.4}/sec   total: {total}"
            )?;
        }
        writeln!(f, "{} events never hit", self.0.len() - names.len())
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_that_was_seen_and_memory_is_bounded() {
        let (mut coverage, start) = (Coverage::default(), Instant::now());
        let at = |second: u64| start + Duration::from_secs(second);
        // Ten a second for two hours, then none for half a minute.
        let count = |second: u64| vec![("rx".to_owned(), 10 * second.min(7_200)), ("never".to_owned(), 0)];
        for second in 0..=7_230 {
            coverage.note(at(second), &count(second));
        }
        let report = coverage.report(at(7_230), count(7_230));
        let Row { per_second_5s, per_second_1m, per_second_1h, total, .. } = report.0[0].clone();
        assert_eq!((per_second_5s, total), (0.0, 72_000));
        assert!((4.9..=5.1).contains(&per_second_1m), "{per_second_1m}");
        assert!((9.8..=10.0).contains(&per_second_1h), "{per_second_1h}");
        assert!(coverage.seconds.len() <= 62 && coverage.minutes.len() <= 62);
        assert!(report.to_string().contains("total: 72000\n1 events never hit"), "{report}");
    }

    #[test]
    fn before_the_first_reading_there_are_no_rates() {
        let report = Coverage::default().report(Instant::now(), vec![("rx".to_owned(), 7)]);
        assert_eq!((report.0[0].per_second_5s, report.0[0].total), (0.0, 7));
    }
}
