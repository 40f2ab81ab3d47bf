//! [`Faults`]: what can be made to go wrong with a device, and by what chance it does.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Faults of a device, all absent at first.
///
/// Chance is the seed's: the same operations under the same faults meet the same fate, in every run.
///
/// # Thread-safety
/// Every method may be called from any thread. An operation of a device without faults costs one relaxed load.
#[derive(Debug, Default)]
pub struct Faults {
    /// Whether there are any: all that an operation looks at if not.
    any: AtomicBool,
    state: Mutex<State>,
    /// Something that waiting operations wait for has changed.
    changed: Condvar,
}

/// What is made to go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Settings {
    /// Of operations, that fail.
    pub fail: Share,
    /// Time that each operation takes longer.
    #[serde(serialize_with = "as_text")]
    pub delay: Duration,
    /// Operations do not return.
    pub hang: bool,
    /// There is room for no other rule.
    pub full: bool,
    /// Of operations, before which the device forgets every rule.
    pub reset: Share,
    /// Counts are nonsense.
    pub lie: bool,
    /// What chance begins with.
    pub seed: u64,
}

/// A part of all, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Share(u32);

/// Why a fault was not set.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FaultError {
    #[error("{0:?} is no fault; known: {known}", known = Settings::NAMES.join(", "))]
    Kind(String),
    #[error("{name}={value}: {expected}")]
    Value { name: &'static str, value: String, expected: &'static str },
}

/// The fate of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Fate {
    pub delay: Duration,
    /// The device forgets everything before.
    pub reset: bool,
    pub fail: Option<Failure>,
    pub full: bool,
    /// What the nonsense is made of, where it is.
    pub lie: Option<Dice>,
}

/// When an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    Before,
    /// Having taken effect, where that is possible.
    After,
}

/// The device was restarted while the operation hung.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it was restarted")]
pub(super) struct Abandoned;

/// Numbers that look random and are the same every time (splitmix64).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Dice(u64);

#[derive(Debug, Default)]
struct State {
    settings: Settings,
    dice: Dice,
    /// Restarts so far.
    life: u64,
}

impl Faults {
    pub fn new(settings: Settings) -> Faults {
        let state = State { settings, dice: Dice(settings.seed), life: 0 };
        Faults { any: AtomicBool::new(settings.any()), state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn settings(&self) -> Settings {
        self.state().settings
    }

    /// Changes what `change` changes. A seed that is set, even to what it was, begins anew.
    pub fn set<'a>(&self, changes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), FaultError> {
        let mut state = self.state();
        let mut wanted = state.settings;
        let mut dice = state.dice;
        for (name, value) in changes {
            wanted.set(name, value)?;
            if name == "seed" {
                dice = Dice(wanted.seed);
            }
        }
        (state.settings, state.dice) = (wanted, dice);
        self.settle(state);
        Ok(())
    }

    /// Takes every fault away. The seed stays, and chance goes on.
    pub fn clear(&self) {
        let mut state = self.state();
        state.settings = Settings { seed: state.settings.seed, ..Settings::default() };
        self.settle(state);
    }

    /// The restarts so far, for whoever is about to begin operations.
    pub(super) fn life(&self) -> u64 {
        self.state().life
    }

    /// The device is restarted: a hang is over, and what hung is abandoned.
    pub(super) fn restarted(&self) {
        let mut state = self.state();
        state.life += 1;
        state.settings.hang = false;
        self.settle(state);
    }

    /// The fate of an operation that belongs to `life`. Hangs as long as operations are to hang.
    #[inline]
    pub(super) fn meet(&self, life: u64) -> Result<Fate, Abandoned> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(Fate::default());
        }
        self.roll(life)
    }

    #[cold]
    fn roll(&self, life: u64) -> Result<Fate, Abandoned> {
        let mut state = self.wait(life)?;
        let settings = state.settings;
        // The same number of draws for every operation, so that what one meets does not depend on what is wrong.
        let (reset, fail, after, lie) = (state.dice.draw(), state.dice.draw(), state.dice.draw(), state.dice.draw());
        let failure = if after & 1 == 0 { Failure::Before } else { Failure::After };
        Ok(Fate {
            delay: settings.delay,
            reset: settings.reset.covers(reset),
            fail: settings.fail.covers(fail).then_some(failure),
            full: settings.full,
            lie: settings.lie.then_some(Dice(lie)),
        })
    }

    /// Hangs as long as operations are to hang, and lets nothing else go wrong.
    pub(super) fn hang(&self, life: u64) -> Result<(), Abandoned> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.wait(life).map(drop)
    }

    fn wait(&self, life: u64) -> Result<MutexGuard<'_, State>, Abandoned> {
        let hangs = |state: &mut State| state.settings.hang && state.life == life;
        let state = self.changed.wait_while(self.state(), hangs).unwrap_or_else(PoisonError::into_inner);
        if state.life == life { Ok(state) } else { Err(Abandoned) }
    }

    fn settle(&self, state: MutexGuard<'_, State>) {
        self.any.store(state.settings.any(), Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Settings are replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    /// What [`Faults::set`] knows.
    pub const NAMES: [&str; 7] = ["fail", "delay", "hang", "full", "reset", "lie", "seed"];

    /// Sets the fault of this name.
    ///
    /// # Errors
    /// Says what would be accepted; nothing has changed.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), FaultError> {
        let at = Settings::NAMES.iter().position(|known| *known == name);
        let name = Settings::NAMES[at.ok_or_else(|| FaultError::Kind(name.to_owned()))?];
        let refuse = |expected| FaultError::Value { name, value: value.to_owned(), expected };
        let share = || value.parse().map_err(|SyntaxError| refuse("expected a share like 0.2 or 20%"));
        let flag = || value.parse().map_err(|_| refuse("expected true or false"));
        match name {
            "fail" => self.fail = share()?,
            "delay" => {
                let delay = humantime::parse_duration(value).ok().filter(|time| *time <= LONGEST);
                self.delay = delay.ok_or_else(|| refuse("expected a time of at most 1h, like 10ms"))?;
            }
            "hang" => self.hang = flag()?,
            "full" => self.full = flag()?,
            "reset" => self.reset = share()?,
            "lie" => self.lie = flag()?,
            _ => self.seed = value.parse().map_err(|_| refuse("expected a whole number"))?,
        }
        Ok(())
    }

    fn any(&self) -> bool {
        let Settings { fail, delay, hang, full, reset, lie, seed: _ } = *self;
        fail > Share::NONE || !delay.is_zero() || hang || full || reset > Share::NONE || lie
    }
}

/// The longest delay.
const LONGEST: Duration = Duration::from_secs(3_600);

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { fail, delay, hang, full, reset, lie, seed } = self;
        let delay = humantime::format_duration(*delay);
        write!(f, "fail={fail}\ndelay={delay}\nhang={hang}\nfull={full}\nreset={reset}\nlie={lie}\nseed={seed}\n")
    }
}

fn as_text<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*time))
}

impl Share {
    pub const NONE: Share = Share(0);
    const ALL: u32 = 1_000_000;

    /// Whether a number that any 64 bits are equally likely of falls into the share.
    fn covers(self, draw: u64) -> bool {
        (u128::from(draw) * u128::from(Share::ALL)) >> 64 < u128::from(self.0)
    }
}

/// A text that is no share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SyntaxError;

impl FromStr for Share {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Share, SyntaxError> {
        let (number, whole) = match text.strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        let number: f64 = number.parse().map_err(|_| SyntaxError)?;
        let share = number / whole;
        // Not a number is in no range.
        if !(0.0..=1.0).contains(&share) {
            return Err(SyntaxError);
        }
        Ok(Share((share * f64::from(Share::ALL)).round() as u32))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 10_000.0)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / f64::from(Share::ALL))
    }
}

impl Dice {
    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_all_or_none_and_shown_as_they_are_written() {
        let faults = Faults::default();
        faults.set([("fail", "20%"), ("delay", "10ms"), ("reset", "0.001"), ("lie", "true"), ("seed", "7")]).unwrap();
        let text = "fail=20%\ndelay=10ms\nhang=false\nfull=false\nreset=0.1%\nlie=true\nseed=7\n";
        assert_eq!(faults.settings().to_string(), text);
        let json = serde_json::to_value(faults.settings()).unwrap();
        assert_eq!((json["fail"].as_f64(), json["delay"].as_str()), (Some(0.2), Some("10ms")));
        for (name, value, wrong) in [
            ("fail", "101%", "fail=101%: expected a share like 0.2 or 20%"),
            ("reset", "NaN", "reset=NaN: expected a share"),
            ("delay", "2h", "delay=2h: expected a time of at most 1h"),
            ("hang", "maybe", "hang=maybe: expected true or false"),
            ("seed", "-1", "seed=-1: expected a whole number"),
            ("smoke", "1", "\"smoke\" is no fault; known: fail, delay, hang, full, reset, lie, seed"),
        ] {
            let error = faults.set([("fail", "0"), (name, value)]).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
        assert_eq!(faults.settings().to_string(), text);
        faults.clear();
        assert_eq!(faults.settings(), Settings { seed: 7, ..Settings::default() });
    }

    #[test]
    fn the_same_seed_is_the_same_fate_and_shares_are_kept() {
        let fates = |faults: &Faults| -> Vec<Fate> { (0..10_000).map(|_| faults.meet(0).unwrap()).collect() };
        let faults = Faults::default();
        faults.set([("fail", "20%"), ("reset", "1%"), ("seed", "7")]).unwrap();
        let first = fates(&faults);
        let failed = first.iter().filter(|fate| fate.fail.is_some()).count();
        let late = first.iter().filter(|fate| fate.fail == Some(Failure::After)).count();
        let reset = first.iter().filter(|fate| fate.reset).count();
        assert!((1_850..2_150).contains(&failed) && (60..140).contains(&reset), "{failed}, {reset}");
        assert!((900..1_100).contains(&late), "{late}");
        assert_ne!(fates(&faults), first, "chance goes on");
        faults.set([("seed", "7")]).unwrap();
        assert_eq!(fates(&faults), first);
    }

    #[test]
    fn a_share_of_all_is_always_met_and_none_never() {
        let all: Share = "100%".parse().unwrap();
        assert!(all.covers(0) && all.covers(u64::MAX));
        assert!(!Share::NONE.covers(0));
        assert_eq!("0.7%".parse::<Share>().unwrap().to_string(), "0.7%");
    }
}
