//! [`Settings`]: what operators change of the offload path while it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What is wanted now.
///
/// # Thread-safety
/// Anybody may read and write. Each value is right by itself; whoever writes then tells those who act on it
/// ([`Offload::set`](super::Offload::set)).
#[derive(Debug)]
pub struct Settings {
    enabled: AtomicBool,
    min_packets: AtomicU64,
    min_age_ms: AtomicU64,
    min_rate: AtomicU64,
    operation_rate: AtomicU64,
}

/// The same as plain values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Wanted {
    /// Whether flows are offloaded at all.
    pub enabled: bool,
    /// Packets that a flow must have carried before it is worth offloading.
    pub min_packets: u64,
    /// Milliseconds that it must have lived.
    #[serde(rename = "min_age_ms", serialize_with = "millis")]
    pub min_age: Duration,
    /// Packets a second that it must carry.
    pub min_rate: u64,
    /// The most puts and changes a second asked of the device; 0 = as many as it takes. Removals are never held back, but
    /// count.
    pub operation_rate: u64,
}

fn millis<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_millis() as u64)
}

impl Default for Wanted {
    /// Every flow, at once.
    fn default() -> Self {
        Wanted { enabled: true, min_packets: 0, min_age: Duration::ZERO, min_rate: 0, operation_rate: 0 }
    }
}

/// How a flow has done so far.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub packets: u64,
    pub age: Duration,
    /// Packets a second of late; `None`: not measured yet.
    pub rate: Option<u64>,
}

impl Record {
    /// Of a flow that was just made.
    pub const NEW: Record = Record { packets: 0, age: Duration::ZERO, rate: None };
}

impl Settings {
    pub fn new(wanted: &Wanted) -> Settings {
        let settings = Settings {
            enabled: AtomicBool::new(false),
            min_packets: AtomicU64::new(0),
            min_age_ms: AtomicU64::new(0),
            min_rate: AtomicU64::new(0),
            operation_rate: AtomicU64::new(0),
        };
        settings.set(wanted);
        settings
    }

    pub fn set(&self, wanted: &Wanted) {
        self.min_packets.store(wanted.min_packets, Ordering::Relaxed);
        self.min_age_ms.store(wanted.min_age.as_millis() as u64, Ordering::Relaxed);
        self.min_rate.store(wanted.min_rate, Ordering::Relaxed);
        self.operation_rate.store(wanted.operation_rate, Ordering::Relaxed);
        self.enabled.store(wanted.enabled, Ordering::Release);
    }

    pub fn get(&self) -> Wanted {
        Wanted {
            enabled: self.is_enabled(),
            min_packets: self.min_packets.load(Ordering::Relaxed),
            min_age: Duration::from_millis(self.min_age_ms.load(Ordering::Relaxed)),
            min_rate: self.min_rate.load(Ordering::Relaxed),
            operation_rate: self.operation_rate(),
        }
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    pub(super) fn operation_rate(&self) -> u64 {
        self.operation_rate.load(Ordering::Relaxed)
    }

    /// What a flow lacks to be worth offloading; `None`: nothing.
    pub fn lacks(&self, record: &Record) -> Option<String> {
        let Wanted { min_packets, min_age, min_rate, .. } = self.get();
        if record.packets < min_packets {
            return Some(format!("fewer than {min_packets} packets"));
        }
        if record.age < min_age {
            return Some(format!("younger than {}", humantime::format_duration(min_age)));
        }
        if min_rate > 0 && record.rate.is_none_or(|rate| rate < min_rate) {
            return Some(format!("slower than {min_rate} packets a second"));
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_worth_it_when_it_lacks_nothing_and_at_once_by_default() {
        let new = Record { packets: 0, age: Duration::ZERO, rate: None };
        assert_eq!(Settings::new(&Wanted::default()).lacks(&new), None);
        let wanted = Wanted { min_packets: 10, min_age: Duration::from_secs(2), min_rate: 5, ..Wanted::default() };
        let settings = Settings::new(&wanted);
        assert_eq!(settings.get(), wanted);
        assert_eq!(settings.lacks(&new).as_deref(), Some("fewer than 10 packets"));
        let more = Record { packets: 10, ..new };
        assert_eq!(settings.lacks(&more).as_deref(), Some("younger than 2s"));
        let older = Record { age: Duration::from_secs(2), ..more };
        assert_eq!(settings.lacks(&older).as_deref(), Some("slower than 5 packets a second"));
        assert_eq!(
            settings.lacks(&Record { rate: Some(4), ..older }).as_deref(),
            Some("slower than 5 packets a second")
        );
        assert_eq!(settings.lacks(&Record { rate: Some(5), ..older }), None);
    }
}
