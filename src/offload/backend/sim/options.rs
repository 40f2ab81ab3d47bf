//! [`Options`]: what can be chosen of a simulated NIC.

use std::time::Duration;

use crate::flow::Mask;
use crate::flow::field::FIELDS;
use crate::offload::backend::{ActionSet, BackendCaps, OpenError};
use crate::offload::state::Level;

/// What can be chosen of a simulated NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time of one operation on the table.
    pub operation: Duration,
    /// Rules that fit, 1 to 16,777,216.
    pub capacity: usize,
    /// Width of the marks, 8 to 32.
    pub mark_bits: u8,
    /// Whether a rule can be changed in place.
    pub replace: bool,
    /// The most that it does for a flow.
    pub level: Level,
    /// The bits it can match.
    pub fields: Mask,
    /// What it executes by itself at [`Level::Full`].
    pub actions: ActionSet,
    /// Frames that wait behind the match in a receive ring of its own, 0 to 65,536.
    pub ring: usize,
}

/// Insertion rates, in rules per second, as published for kinds of NICs: rules set by firmware, by the kernel's TC
/// flower, by software steering and by hardware steering.
const PRESETS: [(&str, Option<u32>); 5] =
    [("fw", Some(5_000)), ("tc", Some(33_000)), ("sws", Some(300_000)), ("hws", Some(4_500_000)), ("instant", None)];

/// The longest time of one operation.
const LONGEST: Duration = Duration::from_secs(3_600);

impl Default for Options {
    /// As fast as the machine, with a million rules and 24-bit marks, as ConnectX NICs have. It stamps marks and no more.
    fn default() -> Self {
        Options {
            operation: Duration::ZERO,
            capacity: 1 << 20,
            mark_bits: 24,
            replace: true,
            level: Level::Mark,
            fields: Mask::EXACT,
            actions: ActionSet::ALL,
            ring: 0,
        }
    }
}

impl Options {
    /// Reads `option=value` pairs; of two of the same kind the last counts.
    ///
    /// # Errors
    /// Names the option that is not understood, and what would be.
    pub fn parse(pairs: &[(String, String)]) -> Result<Options, OpenError> {
        let mut options = Options::default();
        for (option, value) in pairs {
            options.set(option, value).map_err(|expected| OpenError::Option {
                kind: "sim",
                option: option.clone(),
                value: value.clone(),
                expected,
            })?;
        }
        Ok(options)
    }

    /// What a NIC with these options can do.
    pub fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "sim",
            fields: self.fields,
            level: self.level,
            actions: if self.level == Level::Full { self.actions } else { ActionSet::NONE },
            capacity: Some(self.capacity),
            mark_bits: self.mark_bits,
            replace_in_place: self.replace,
            batch: 1,
        }
    }

    /// The error is what would have been accepted.
    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        match option {
            "preset" => {
                let preset = PRESETS.iter().find(|(name, _)| *name == value);
                let (_, rate) = preset.ok_or("expected fw, tc, sws, hws or instant")?;
                self.operation = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
            }
            "op-time" => {
                let time = humantime::parse_duration(value).ok().filter(|time| *time <= LONGEST);
                self.operation = time.ok_or("expected a time of at most 1h, like 10ms")?;
            }
            "capacity" => {
                let capacity = value.parse().ok().filter(|n| (1..=16_777_216).contains(n));
                self.capacity = capacity.ok_or("expected a number of rules, 1 to 16777216")?;
            }
            "mark-bits" => {
                let bits = value.parse().ok().filter(|n| (8..=32).contains(n));
                self.mark_bits = bits.ok_or("expected 8 to 32")?;
            }
            "replace" => self.replace = value.parse().map_err(|_| "expected true or false")?,
            "level" => {
                self.level = match value {
                    "mark" => Level::Mark,
                    "full" => Level::Full,
                    _ => return Err("expected mark or full".to_owned()),
                }
            }
            "without" => value.split('+').try_for_each(|name| self.remove(name))?,
            "ring" => {
                let ring = value.parse().ok().filter(|n| *n <= 65_536);
                self.ring = ring.ok_or("expected a number of frames, 0 to 65536")?;
            }
            _ => {
                let known = "preset, op-time, capacity, mark-bits, replace, level, without, ring";
                return Err(format!("no such option; known: {known}"));
            }
        }
        Ok(())
    }

    /// Takes the field or action of this name away.
    fn remove(&mut self, name: &str) -> Result<(), String> {
        if let Some(def) = FIELDS.iter().find(|def| def.name == name) {
            def.field.set(self.fields.words_mut(), 0);
            return Ok(());
        }
        self.actions = self.actions.without(name).ok_or_else(|| {
            format!(
                "{name:?} is neither a field, like ip_src or tcp_flags, nor one of the actions {}",
                ActionSet::NAMES.join(", ")
            )
        })?;
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::flow::Field;
    use crate::offload::backend::BackendSpec;

    fn parse(text: &str) -> Result<Options, OpenError> {
        Options::parse(&text.parse::<BackendSpec>().unwrap().options)
    }

    #[test]
    fn options_are_read_and_the_last_of_a_kind_counts() {
        let options = parse("sim,preset=fw,capacity=10000,mark-bits=16,replace=false,level=mark,ring=64").unwrap();
        let expected = Options {
            operation: Duration::from_micros(200),
            capacity: 10_000,
            mark_bits: 16,
            replace: false,
            ring: 64,
            ..Options::default()
        };
        assert_eq!(options, expected);
        assert_eq!(parse("sim,preset=fw,op-time=10ms").unwrap().operation, Duration::from_millis(10));
        assert_eq!(parse("sim,op-time=10ms,preset=instant").unwrap().operation, Duration::ZERO);
    }

    #[test]
    fn bad_options_are_refused_by_name_with_what_would_be_accepted() {
        for (text, wrong) in [
            ("sim,preset=fast", "preset=fast: expected fw, tc, sws, hws or instant"),
            ("sim,op-time=soon", "op-time=soon: expected a time"),
            ("sim,op-time=2h", "op-time=2h: expected a time of at most 1h"),
            ("sim,capacity=0", "capacity=0: expected"),
            ("sim,mark-bits=7", "mark-bits=7: expected 8 to 32"),
            ("sim,level=half", "level=half: expected mark or full"),
            ("sim,ring=65537", "ring=65537: expected a number of frames, 0 to 65536"),
            ("sim,without=ip_src+teleport", "\"teleport\" is neither a field, like ip_src or tcp_flags, nor one of"),
            ("sim,colour=red", "colour=red: no such option"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(
            "sim,preset".parse::<BackendSpec>().unwrap_err().to_string().contains("\"preset\" is not option=value")
        );
    }

    #[test]
    fn what_the_nic_is_without_is_not_among_its_capabilities() {
        let caps = parse("sim,level=full,without=tcp_flags+pop_vlan+set(ipv6)").unwrap().capabilities();
        assert_eq!(caps.level, Level::Full);
        assert_eq!(caps.fields.get(Field::TcpFlags), 0);
        assert!(caps.fields.is_exact(Field::Ipv6Src));
        let all_but = ActionSet::ALL.without("pop_vlan").and_then(|set| set.without("set(ipv6)"));
        assert_eq!(Some(caps.actions), all_but);
        assert_eq!(parse("sim").unwrap().capabilities().actions, ActionSet::NONE);
    }
}
