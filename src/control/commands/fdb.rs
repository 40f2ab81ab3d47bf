//! `fdb/*`: the stations that `normal` learned, and those put there by hand.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::BRIDGE;
use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;
use crate::flow::PortNo;
use crate::slowpath::learn::{MacCounts, Station, StationView};

type Result<T> = std::result::Result<T, CommandError>;

/// The highest number of a VLAN (IEEE 802.1Q: 4095 is reserved).
const MAX_VLAN: u16 = 4094;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "fdb/show",
        usage: "[BRIDGE]",
        help: "Lists the stations that normal learned, and those put there by hand: port, VLAN, address, seconds since heard.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                bridge(&args)?;
                let stations = daemon.slowpath.stations().dump(clock::now());
                Ok(Answer::of(Stations(stations.iter().map(Row::new).collect())))
            })
        },
    },
    Command {
        name: "fdb/stats-show",
        usage: "[BRIDGE]",
        help: "Shows how many stations there are, and how many were learned, expired, pushed out and moved.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                bridge(&args)?;
                Ok(Answer::of(Stats(daemon.slowpath.stations().counts())))
            })
        },
    },
    Command {
        name: "fdb/flush",
        usage: "[BRIDGE]",
        help: "Forgets all stations that were learned.",
        args: 0..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                bridge(&args)?;
                let flushed = daemon.slowpath.stations().flush(None);
                Ok(Answer::new("table successfully flushed", json!({ "flushed": flushed })))
            })
        },
    },
    Command {
        name: "fdb/add",
        usage: "[BRIDGE] PORT VLAN MAC",
        help: "Puts a station at a port, where it stays whatever is heard of it: it neither ages nor moves.",
        args: 3..=4,
        right: Right::Write,
        run: |daemon, mut args| {
            Box::pin(async move {
                if args.len() > 3 {
                    bridge(&[args.remove(0)])?;
                }
                let port = daemon.switch.port_number(&args[0]);
                let port = port.ok_or_else(|| CommandError::new(format!("no port {:?} in {BRIDGE}", args[0])))?;
                let station = Station { port, vlan: vlan(&args[1])?, mac: mac(&args[2])? };
                match daemon.slowpath.stations().fix(station, clock::now()) {
                    true => Ok(Answer::nothing()),
                    false => Err(CommandError::new("no room: fdb/del makes some (slowpath.mac-limit)")),
                }
            })
        },
    },
    Command {
        name: "fdb/del",
        usage: "[BRIDGE] VLAN MAC",
        help: "Forgets a station, learned or put there by hand.",
        args: 2..=3,
        right: Right::Write,
        run: |daemon, mut args| {
            Box::pin(async move {
                if args.len() > 2 {
                    bridge(&[args.remove(0)])?;
                }
                match daemon.slowpath.stations().forget(vlan(&args[0])?, mac(&args[1])?) {
                    true => Ok(Answer::nothing()),
                    false => Err(CommandError::new(format!("no station {} in VLAN {}", args[1], args[0]))),
                }
            })
        },
    },
];

fn bridge(args: &[String]) -> Result<()> {
    match args.iter().find(|arg| *arg != BRIDGE) {
        None => Ok(()),
        Some(other) => Err(CommandError::new(format!("no such bridge {other:?}; there is {BRIDGE}"))),
    }
}

fn vlan(text: &str) -> Result<u16> {
    let vlan = text.parse().ok().filter(|vlan| *vlan <= MAX_VLAN);
    vlan.ok_or_else(|| CommandError::new(format!("VLAN {text:?}: expected 0 (no tag) to {MAX_VLAN}")))
}

fn mac(text: &str) -> Result<u64> {
    let parts: Vec<_> = text.split(':').collect();
    let is_hex = |part: &str| (1..=2).contains(&part.len()) && part.chars().all(|c| c.is_ascii_hexdigit());
    let byte = |part: &&str| is_hex(part).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let bytes: Option<Vec<u8>> = parts.iter().map(byte).collect();
    let bytes = bytes.filter(|bytes| bytes.len() == 6 && bytes[0] & 1 == 0);
    let bytes = bytes.ok_or_else(|| {
        CommandError::new(format!("MAC {text:?}: expected a station's address such as 02:00:00:00:00:01"))
    })?;
    Ok(bytes.iter().fold(0, |mac, byte| mac << 8 | u64::from(*byte)))
}

#[derive(Serialize)]
#[serde(transparent)]
struct Stations(Vec<Row>);

#[derive(Serialize)]
struct Row {
    port_no: PortNo,
    vlan: u16,
    mac: String,
    /// Put there by hand.
    r#static: bool,
    /// Seconds since it was last heard of; `None`: it is not listened for.
    age_s: Option<u64>,
}

impl Row {
    fn new(view: &StationView) -> Row {
        let Station { port, vlan, mac } = view.station;
        let bytes = mac.to_be_bytes().map(|byte| format!("{byte:02x}"));
        let age_s = view.age.map(|age| age.as_secs());
        Row { port_no: port, vlan, mac: bytes[2..].join(":"), r#static: view.age.is_none(), age_s }
    }
}

impl fmt::Display for Stations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, " port  VLAN  MAC                Age")?;
        for Row { port_no, vlan, mac, age_s, .. } in &self.0 {
            write!(f, "{port_no:>5}  {vlan:>4}  {mac}  ")?;
            match age_s {
                Some(age) => writeln!(f, "{age:>3}")?,
                None => writeln!(f, "static")?,
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Stats(MacCounts);

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MacCounts { stations, limit, fixed, learned, expired, evicted, moved } = self.0;
        writeln!(f, "Statistics for bridge \"{BRIDGE}\":")?;
        writeln!(f, "  Current/maximum MAC entries in the table: {stations}/{limit}")?;
        writeln!(f, "  Current static MAC entries in the table : {fixed}")?;
        writeln!(f, "  Total number of learned MAC entries     : {learned}")?;
        writeln!(f, "  Total number of expired MAC entries     : {expired}")?;
        writeln!(f, "  Total number of evicted MAC entries     : {evicted}")?;
        writeln!(f, "  Total number of port moved MAC entries  : {moved}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_vlans_are_read_or_refused_with_what_would_do() {
        assert_eq!(mac("02:0:00:00:aa:1"), Ok(0x0200_0000_aa01));
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:00",
            "03:00:00:00:00:01",
        ] {
            assert!(mac(wrong).unwrap_err().to_string().contains("expected a station's address"), "{wrong}");
        }
        assert_eq!((vlan("0"), vlan("4094")), (Ok(0), Ok(4094)));
        assert!(vlan("4095").is_err() && vlan("-1").is_err());
    }
}
