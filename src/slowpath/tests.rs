//! Tests of the slow path, and what they share.

mod decisions;
mod linear;
mod rules;

use std::time::Instant;

use super::learn::Station;
use super::rules::RuleSpec;
use super::{Decision, Slowpath, text};
use crate::flow::key::{eth_type, ip_proto};
use crate::flow::{Field, Key, Mask, PortNo};

/// Ports that there are.
const PORTS: [u32; 4] = [1, 2, 3, 5];

fn slowpath(rules: &[String], stations: &[Station]) -> (Slowpath, Vec<RuleSpec>) {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    slowpath.set_ports(PORTS.iter().map(|p| (PortNo(*p), format!("p{p}"))).collect());
    slowpath.add_rules(rules.iter().map(String::as_str), &(), now).unwrap();
    for station in stations {
        slowpath.stations().learn(*station, now);
    }
    // As a replaced rule does, a later one of the same priority and match takes the earlier one's place.
    let mut specs: Vec<RuleSpec> = Vec::new();
    for spec in rules.iter().map(|r| text::parse_rule(r, &()).unwrap()) {
        let same = |s: &&mut RuleSpec| (s.table, s.priority, s.matching) == (spec.table, spec.priority, spec.matching);
        match specs.iter_mut().find(same) {
            Some(old) => *old = spec,
            None => specs.push(spec),
        }
    }
    (slowpath, specs)
}

fn decided(rules: &[&str], key: &Key) -> Decision {
    let rules: Vec<String> = rules.iter().map(|r| r.to_string()).collect();
    slowpath(&rules, &[]).0.decide(key, Instant::now(), false)
}

fn tcp(dst: u32, port: u16) -> Key {
    let mut key = Key::ZERO;
    key.set(Field::InPort, 1u8);
    key.set(Field::EthType, eth_type::IPV4);
    key.set(Field::EthSrc, 0x0200_0000_0001u64);
    key.set(Field::EthDst, 0x0200_0000_0002u64);
    key.set(Field::Ipv4Src, 0x0a09_0909u32);
    key.set(Field::Ipv4Dst, dst);
    key.set(Field::IpProto, ip_proto::TCP);
    key.set(Field::IpTtl, 64u8);
    key.set(Field::TpSrc, 999u16);
    key.set(Field::TpDst, port);
    key
}

/// The mask of every decision about an untagged IP packet, and these fields.
fn mask(fields: &[(Field, u128)]) -> Mask {
    let mut mask = Mask::EMPTY;
    for field in [Field::InPort, Field::RecircId, Field::EthType, Field::Vlan0Cfi, Field::IpFrag] {
        mask.add_field(field);
    }
    for (field, bits) in fields {
        mask.add(*field, *bits);
    }
    mask
}
