//! [`PortSpec`]: a port as people write it, `NAME[,type=KIND][,option=value…]`.
//!
//! Without `type=`, the port is an existing interface. What an option's *value* may be is checked by the kind, when
//! the port is opened; its *name* is checked here, so that a typing error is found before anything is touched.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::OpenError;
use crate::flow::PortNo;

/// What is behind a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Sim,
    Pcap,
    Tap,
    Packet,
    Xsk,
}

/// A port as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    pub name: String,
    pub kind: Kind,
    /// `port_no=`; else the lowest free number from 1.
    pub number: Option<PortNo>,
    /// The other options, checked by the kind that they are for.
    pub options: BTreeMap<String, String>,
}

/// Why a text describes no port.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    #[error("port '{name}': {why}")]
    Name { name: String, why: &'static str },
    #[error("port {port}: unknown type '{kind}' (known: {})", kinds())]
    Kind { port: String, kind: String },
    #[error("port {port}: port_no={value}: a number from 1 to 65535 is needed")]
    Number { port: String, value: String },
    #[error("port {port}: '{text}': option=value is needed")]
    Syntax { port: String, text: String },
    #[error("port {port}: option '{option}' is given twice")]
    Twice { port: String, option: String },
    #[error("port {port}: unknown option '{option}' (of type={kind}: type, port_no, {})", kind.options().join(", "))]
    Option { port: String, kind: Kind, option: String },
}

impl Kind {
    /// Every kind, in the order shown to people.
    pub const ALL: [Kind; 5] = [Kind::Packet, Kind::Xsk, Kind::Tap, Kind::Pcap, Kind::Sim];

    /// The names that `type=` takes, the proper one first.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Kind::Sim => &["sim", "dummy", "dummy-pmd"],
            Kind::Pcap => &["pcap"],
            Kind::Tap => &["tap"],
            Kind::Packet => &["packet", "system"],
            Kind::Xsk => &["xsk", "afxdp"],
        }
    }

    /// The options it takes beside `type` and `port_no`.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Kind::Sim => super::sim::OPTIONS,
            Kind::Pcap => super::pcap::OPTIONS,
            Kind::Tap => super::tap::OPTIONS,
            Kind::Packet => super::packet_socket::OPTIONS,
            Kind::Xsk => &["queues", "xdp-mode", "ring", "use-need-wakeup", "busy-poll", "send", "promisc", "force"],
        }
    }

    /// Whether the port's name is a Linux interface's name.
    fn is_interface(self) -> bool {
        matches!(self, Kind::Tap | Kind::Packet | Kind::Xsk)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.names()[0])
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Kind, ()> {
        Kind::ALL.into_iter().find(|kind| kind.names().contains(&text)).ok_or(())
    }
}

impl FromStr for PortSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<PortSpec, SpecError> {
        let mut parts = text.split(',').map(str::trim);
        let port = parts.next().unwrap_or_default().to_owned();
        let mut spec = PortSpec { name: port.clone(), kind: Kind::Packet, number: None, options: BTreeMap::new() };
        let mut kind = None;
        for part in parts {
            let Some((option, value)) = part.split_once('=').filter(|(option, _)| !option.is_empty()) else {
                return Err(SpecError::Syntax { port, text: part.to_owned() });
            };
            let option = proper_name(option);
            let first = match option {
                "type" => {
                    let parsed =
                        value.parse().map_err(|()| SpecError::Kind { port: port.clone(), kind: value.to_owned() })?;
                    kind.replace(parsed).is_none()
                }
                "port_no" => {
                    let number = value.parse().ok().filter(|n| (1..=PortNo::MAX.0).contains(n));
                    let number =
                        number.ok_or_else(|| SpecError::Number { port: port.clone(), value: value.to_owned() })?;
                    spec.number.replace(PortNo(number)).is_none()
                }
                _ => spec.options.insert(option.to_owned(), value.to_owned()).is_none(),
            };
            if !first {
                return Err(SpecError::Twice { port, option: option.to_owned() });
            }
        }
        spec.kind = kind.unwrap_or(Kind::Packet);
        spec.check()?;
        Ok(spec)
    }
}

/// The canonical text, which parses to the same port.
impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},type={}", self.name, self.kind)?;
        if let Some(number) = self.number {
            write!(f, ",port_no={number}")?;
        }
        self.options.iter().try_for_each(|(option, value)| write!(f, ",{option}={value}"))
    }
}

impl PortSpec {
    /// Whether name and option names suit the kind.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |why| Err(SpecError::Name { name: self.name.clone(), why });
        if self.name.is_empty() {
            return wrong("a port needs a name: NAME[,type=KIND][,option=value…]");
        }
        if self.name.len() > 63 || self.name.contains(|c: char| c.is_whitespace() || c.is_control() || ",=".contains(c))
        {
            return wrong("a port's name has at most 63 bytes, no spaces, no ',' and no '='");
        }
        if self.kind.is_interface()
            && (self.name.len() > 15 || self.name.contains(['/', ':']) || matches!(&*self.name, "." | ".."))
        {
            return wrong("an interface's name has at most 15 bytes, no '/' and no ':'");
        }
        match self.options.keys().find(|option| !self.kind.options().contains(&option.as_str())) {
            Some(option) => Err(SpecError::Option { port: self.name.clone(), kind: self.kind, option: option.clone() }),
            None => Ok(()),
        }
    }

    /// Receive queues asked for; 1 where nothing (or nonsense, refused when the port is opened) is said.
    pub fn rx_queues(&self) -> usize {
        self.text("queues").and_then(|text| text.parse::<u16>().ok()).map_or(1, usize::from)
    }

    /// The text of an option.
    pub(super) fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }

    /// A number within `range`, or `default`.
    pub(super) fn number_in(&self, option: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, OpenError> {
        let Some(text) = self.text(option) else { return Ok(default) };
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
            self.refused(option, format!("a number from {} to {} is needed", range.start(), range.end()))
        })
    }

    /// A rate in packets per second; absent or 0: as fast as it goes.
    pub(super) fn rate(&self, option: &str) -> Result<Option<NonZeroU64>, OpenError> {
        Ok(NonZeroU64::new(self.number_in(option, 0..=1_000_000_000, 0)?))
    }

    /// `yes` or `no`, or `default`.
    pub(super) fn flag(&self, option: &str, default: bool) -> Result<bool, OpenError> {
        match self.text(option) {
            None => Ok(default),
            Some("yes" | "true" | "on" | "1") => Ok(true),
            Some("no" | "false" | "off" | "0") => Ok(false),
            Some(_) => Err(self.refused(option, "yes or no is needed".to_owned())),
        }
    }

    /// The error that says why an option's value will not do.
    pub(super) fn refused(&self, option: &str, expected: String) -> OpenError {
        OpenError::Option {
            port: self.name.clone(),
            option: option.to_owned(),
            value: self.text(option).unwrap_or_default().to_owned(),
            expected,
        }
    }

    /// The error that says what could not be done, and why.
    pub(super) fn failed(&self, what: impl Into<String>, source: impl Into<std::io::Error>) -> OpenError {
        OpenError::Io { port: self.name.clone(), what: what.into(), source: source.into() }
    }

    /// The error that says what is wrong.
    pub(super) fn wrong(&self, what: impl Into<String>) -> OpenError {
        OpenError::Other { port: self.name.clone(), what: what.into() }
    }
}

/// The name that an option goes by here; Open vSwitch's names are taken too.
fn proper_name(option: &str) -> &str {
    match option {
        "n_rxq" => "queues",
        "tx_pcap" => "tx",
        _ => option,
    }
}

fn kinds() -> String {
    let names: Vec<&str> = Kind::ALL.iter().flat_map(|kind| kind.names()).copied().collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<PortSpec>().unwrap_err().to_string()
    }

    #[test]
    fn a_port_without_a_type_is_an_existing_interface() {
        let spec: PortSpec = "eth0".parse().unwrap();
        assert_eq!((spec.kind, spec.number, spec.options.len()), (Kind::Packet, None, 0));
        assert_eq!("eth0,type=system".parse(), Ok(spec));
    }

    #[test]
    fn names_of_open_vswitch_mean_our_own() {
        for kind in ["sim", "dummy", "dummy-pmd"] {
            let spec: PortSpec = format!("p1,type={kind},n_rxq=2,port_no=7,tx_pcap=x").parse().unwrap();
            assert_eq!(spec.to_string(), "p1,type=sim,port_no=7,queues=2,tx=x");
        }
    }

    #[test]
    fn a_refusal_says_what_and_what_would_do() {
        assert_eq!(
            error("a,type=dpdk"),
            "port a: unknown type 'dpdk' (known: packet, system, xsk, afxdp, tap, pcap, sim, dummy, dummy-pmd)"
        );
        assert_eq!(error("a,port_no=0"), "port a: port_no=0: a number from 1 to 65535 is needed");
        assert_eq!(error("a,port_no=65536"), "port a: port_no=65536: a number from 1 to 65535 is needed");
        assert_eq!(error("a,type=tap,fast"), "port a: 'fast': option=value is needed");
        assert_eq!(error("a,type=tap,up=no,up=no"), "port a: option 'up' is given twice");
        assert!(
            error("a,type=tap,flows=3").starts_with("port a: unknown option 'flows' (of type=tap: type, port_no, ")
        );
        assert!(error("").contains("needs a name"));
        assert!(error("an-interface-16b,type=tap").contains("at most 15 bytes"));
        assert!("an-interface-16b,type=sim".parse::<PortSpec>().is_ok());
        assert!(error("../etc").contains("no '/'"));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same_port(
            name in "[a-z][a-z0-9._-]{0,13}", kind in 0usize..4, number in proptest::option::of(1u32..=65_535),
            picks in proptest::collection::btree_map(0usize..20, "[a-z0-9/.:_-]{0,8}", 0..5),
        ) {
            let kind = Kind::ALL[kind];
            let options = picks.into_iter().map(|(i, v)| (kind.options()[i % kind.options().len()].to_owned(), v)).collect();
            let spec = PortSpec { name, kind, number: number.map(PortNo), options };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in ".{0,60}") {
            if let Ok(spec) = text.parse::<PortSpec>() {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }
    }
}
