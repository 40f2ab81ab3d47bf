//! Decisions held against a plain reading of the rules.
//!
//! [`linear`] knows nothing of subtables, masks or bits looked at: it scans all rules in order and does to a model of a packet
//! (a key and a stack of tags) what they say, output by output. [`execute`] does to the same model what datapath actions
//! say. Both must send the same packets to the same ports, for the packet that was decided and for every other that its megaflow catches.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::learn::Station;
use super::rules::{RuleAction, RuleSpec};
use super::{DropReason, RuleError, Slowpath, decide, text};
use crate::flow::key::{eth_type, frag, ip_proto};
use crate::flow::text::{PortNames, canonical};
use crate::flow::{Action, Field, Key, Mask, Match, PortNo};

/// A packet: its key but for the tags, and its tags, the outermost first, as `(tpid, pcp, vid)`.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    key: Key,
    tags: Vec<(u16, u16, u16)>,
}

impl Model {
    fn of(key: &Key) -> Model {
        use Field::*;
        let slots = [[Vlan0Cfi, Vlan0Tpid, Vlan0Pcp, Vlan0Vid], [Vlan1Cfi, Vlan1Tpid, Vlan1Pcp, Vlan1Vid]];
        let present = slots.iter().take_while(|[cfi, ..]| key.get(*cfi) == 1);
        let tags = present.map(|[_, a, b, c]| (key.get(*a) as u16, key.get(*b) as u16, key.get(*c) as u16)).collect();
        let mut bare = *key;
        for field in slots.into_iter().flatten() {
            bare.set(field, 0u8);
        }
        Model { key: bare, tags }
    }

    fn key(&self) -> Key {
        use Field::*;
        let mut key = self.key;
        let slots = [[Vlan0Cfi, Vlan0Tpid, Vlan0Pcp, Vlan0Vid], [Vlan1Cfi, Vlan1Tpid, Vlan1Pcp, Vlan1Vid]];
        for ([cfi, a, b, c], (tpid, pcp, vid)) in slots.into_iter().zip(&self.tags) {
            key.set(cfi, 1u8);
            key.set(a, *tpid);
            key.set(b, *pcp);
            key.set(c, *vid);
        }
        key
    }

    fn assign(&mut self, field: Field, value: u128, mask: u128) {
        let put = |old: u16| (u128::from(old) & !mask | value) as u16;
        match field {
            Field::Vlan0Vid => self.tags.first_mut().into_iter().for_each(|t| t.2 = put(t.2)),
            Field::Vlan0Pcp => self.tags.first_mut().into_iter().for_each(|t| t.1 = put(t.1)),
            Field::TpSrc | Field::TpDst if self.key.get(Field::IpFrag) == u128::from(frag::LATER) => {}
            _ => self.key.set(field, self.key.get(field) & !mask | value),
        }
    }
}

type Sent = Vec<(PortNo, Model)>;

/// What datapath actions send.
fn execute(actions: &[Action], key: &Key) -> Sent {
    let (mut packet, mut sent) = (Model::of(key), Vec::new());
    for action in actions {
        match action {
            Action::Output(port) => sent.push((*port, packet.clone())),
            Action::PushVlan { tpid, tci } => packet.tags.insert(0, (*tpid, tci >> 13, tci & 0xfff)),
            Action::PopVlan => {
                packet.tags.remove(0);
            }
            Action::Set(set) => set.assigns().iter().for_each(|a| packet.assign(a.field, a.value, a.mask)),
        }
    }
    sent
}

/// The rules read one after the other.
struct Linear<'a> {
    rules: &'a [RuleSpec],
    ports: &'a [u32],
    stations: &'a [Station],
    ingress: PortNo,
    packet: Model,
    sent: Sent,
    lookups: usize,
}

enum End {
    Ttl,
    TooDeep,
}

/// What the rules send; `None` when they lead too deep.
fn linear(rules: &[RuleSpec], ports: &[u32], stations: &[Station], key: &Key) -> Option<Sent> {
    let (ingress, packet) = (key.in_port(), Model::of(key));
    let mut run = Linear { rules, ports, stations, ingress, packet, sent: Vec::new(), lookups: 0 };
    match run.table(0, ingress, 0) {
        Err(End::TooDeep) => None,
        _ => Some(run.sent),
    }
}

impl Linear<'_> {
    fn table(&mut self, table: u8, in_port: PortNo, depth: usize) -> Result<(), End> {
        self.lookups += 1;
        if depth >= decide::MAX_DEPTH || self.lookups > decide::MAX_LOOKUPS {
            return Err(End::TooDeep);
        }
        let mut key = self.packet.key();
        key.set(Field::InPort, in_port.0);
        let mut best: Option<&RuleSpec> = None;
        for rule in self.rules.iter().filter(|r| r.table == table) {
            if rule.matching.matches(&key) && best.is_none_or(|b| rule.priority > b.priority) {
                best = Some(rule);
            }
        }
        let Some(rule) = best else { return Ok(()) };
        for action in rule.actions.iter() {
            match *action {
                RuleAction::Output(port) if port == self.ingress => {}
                RuleAction::Output(port) => self.send(port),
                RuleAction::InPort => self.send(self.ingress),
                RuleAction::Flood | RuleAction::All => self.flood(),
                RuleAction::Normal => self.normal(),
                RuleAction::PushVlan(tpid) => self.packet.tags.insert(0, (tpid, 0, 0)),
                RuleAction::PopVlan => {
                    if !self.packet.tags.is_empty() {
                        self.packet.tags.remove(0);
                    }
                }
                RuleAction::ModVlanVid(vid) => self.tag().2 = vid,
                RuleAction::ModVlanPcp(pcp) => self.tag().1 = pcp.into(),
                RuleAction::Set(a) => self.packet.assign(a.field, a.value, a.mask),
                RuleAction::DecTtl => {
                    let ttl = self.packet.key.get(Field::IpTtl);
                    if ttl <= 1 {
                        return Err(End::Ttl);
                    }
                    self.packet.key.set(Field::IpTtl, ttl - 1);
                }
                RuleAction::Resubmit { port, table: to } => {
                    self.table(to.unwrap_or(table), port.unwrap_or(self.ingress), depth + 1)?
                }
                RuleAction::Goto(to) => self.table(to, self.ingress, depth + 1)?,
            }
        }
        Ok(())
    }

    fn tag(&mut self) -> &mut (u16, u16, u16) {
        if self.packet.tags.is_empty() {
            self.packet.tags.push((0x8100, 0, 0));
        }
        &mut self.packet.tags[0]
    }

    fn send(&mut self, port: PortNo) {
        if self.ports.contains(&port.0) {
            self.sent.push((port, self.packet.clone()));
        }
    }

    fn flood(&mut self) {
        for &port in self.ports {
            if PortNo(port) != self.ingress {
                self.send(PortNo(port));
            }
        }
    }

    fn normal(&mut self) {
        let receiver = self.packet.key.get(Field::EthDst) as u64;
        let vlan = self.packet.tags.first().map_or(0, |t| t.2);
        if receiver >> 4 == 0x0180_c200_0000 >> 4 {
            return;
        }
        // A station at a port that there is not is nowhere.
        let there = |s: &&Station| self.ports.contains(&s.port.0);
        let known = self.stations.iter().filter(there).find(|s| s.mac == receiver && s.vlan == vlan);
        match known.filter(|_| receiver >> 40 & 1 == 0) {
            Some(station) if station.port == self.ingress => {}
            Some(station) => self.send(station.port),
            None => self.flood(),
        }
    }
}

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

fn any_of(words: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    prop::sample::select(words).prop_map(str::to_owned)
}

/// Words of a match that can stand together; the first names the protocol.
fn match_words() -> impl Strategy<Value = String> {
    let l2 = prop_oneof![
        3 => Just(String::new()),
        1 => any_of(&[",in_port=1", ",in_port=2", ",in_port=3"]),
        1 => any_of(&[",dl_src=02:00:00:00:00:01", ",dl_dst=02:00:00:00:00:02", ",dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"]),
    ];
    let vlan = prop_oneof![
        3 => Just(String::new()),
        2 => any_of(&[
            ",vlan_tci=0", ",vlan_tci=0x1000/0x1000", ",dl_vlan=5", ",dl_vlan=6,dl_vlan_pcp=3", ",dl_vlan_pcp=3",
            ",dl_vlan=0xffff", ",vlan_vid=0x1004/0x1004", ",vlan_tci=0/0x0fff"
        ]),
    ];
    let l3 = prop_oneof![
        2 => Just(String::new()),
        4 => (any_of(&[",ip", ",tcp", ",udp", ",icmp"]), any_of(&[
            "", "", ",nw_dst=10.0.0.0/24", ",nw_dst=10.0.0.1", ",nw_src=10.0.0.0/8", ",nw_src=10.128.0.0/9,nw_dst=10.0.1.0/24",
            ",nw_ttl=1", ",ip_frag=no", ",ip_frag=later", ",nw_tos=16", ",nw_dst=0.0.0.1/0.0.0.255", ",nw_ecn=1"
        ])).prop_map(|(a, b)| a + &b),
        3 => (any_of(&[",tcp", ",udp", ",tcp6", ",udp6"]), any_of(&[
            ",tp_dst=80", ",tp_src=1000,tp_dst=80", ",tp_dst=0x50/0xfff0", ",tp_dst=443", ",tp_src=0"
        ])).prop_map(|(a, b)| a + &b),
        2 => (any_of(&[",ipv6", ",tcp6", ",udp6", ",icmp6"]), any_of(&[
            "", ",ipv6_dst=2001:db8::/32", ",ipv6_dst=2001:db8::1", ",ipv6_src=::1", ",ipv6_label=7", ",nw_ttl=2"
        ])).prop_map(|(a, b)| a + &b),
        2 => any_of(&[
            ",arp", ",arp,arp_op=1", ",arp,arp_tpa=10.0.0.1", ",arp,arp_spa=10.0.0.0/16", ",arp,arp_sha=02:00:00:00:00:01",
            ",tcp,tcp_flags=+syn-ack", ",icmp,icmp_type=8", ",icmp6,icmp_type=135,icmp_code=0,nd_target=2001:db8::1"
        ]),
    ];
    (l2, vlan, l3).prop_map(|(a, b, c)| a + &b + &c)
}

fn action_words(table: u8) -> impl Strategy<Value = String> {
    let next = table + 1;
    let plain = any_of(&[
        "output:1",
        "output:2",
        "output:3",
        "output:4",
        "5",
        "in_port",
        "flood",
        "all",
        "normal",
        "normal",
        "mod_vlan_vid:5",
        "mod_vlan_vid:6",
        "mod_vlan_pcp:3",
        "push_vlan:0x8100",
        "push_vlan:0x88a8",
        "pop_vlan",
        "pop_vlan",
        "mod_dl_dst:02:00:00:00:00:02",
        "mod_dl_src:02:00:00:00:00:09",
        "set_field:02:00:00:00:00:00/ff:00:00:00:00:00->eth_dst",
        "set_field:6->vlan_vid",
        "set_field:4/4->vlan_vid",
        "set_field:1->vlan_pcp",
        "mod_nw_dst:10.0.0.1",
        "mod_nw_src:10.128.0.1",
        "set_field:10.0.1.0/24->ip_dst",
        "set_field:2001:db8::1->ipv6_dst",
        "mod_tp_dst:80",
        "mod_tp_src:1000",
        "set_field:1/1->tp_dst",
        "dec_ttl",
        "mod_nw_ttl:1",
        "mod_nw_tos:16",
        "set_field:1->nw_ecn",
        "set_field:7->ipv6_label",
    ]);
    prop_oneof![
        6 => plain,
        2 => (0u8..3).prop_map(move |skip| format!("resubmit(,{})", next + skip)),
        1 => (1u8..4).prop_map(move |port| format!("resubmit({port},{next})")),
    ]
}

/// A rule that can be read: actions that its match does not allow are left out.
fn rule() -> impl Strategy<Value = String> {
    (0u8..3).prop_flat_map(|table| {
        let actions = prop::collection::vec(action_words(table), 1..6);
        (Just(table), 1u16..6, match_words(), actions).prop_map(|(table, priority, words, actions)| {
            let head = format!("table={table},priority={priority}{words},actions=");
            let mut list: Vec<String> = Vec::new();
            for action in actions {
                let with = head.clone() + &[list.clone(), vec![action.clone()]].concat().join(",");
                if text::parse_rule(&with, &()).is_ok() {
                    list.push(action);
                }
            }
            head + &if list.is_empty() { "drop".to_owned() } else { list.join(",") }
        })
    })
}

fn pick<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = T> + Clone {
    prop::sample::select(values)
}

/// A key as extraction makes them: fields that the packet does not have are zero.
fn key() -> impl Strategy<Value = Key> {
    let l2 = (
        1u32..4,
        pick(&[1u64, 2, 9]),
        pick(&[0x0200_0000_0001u64, 0x0200_0000_0002, 0xffff_ffff_ffff, 0x0180_c200_0003]),
    );
    let tag = (pick(&[0x8100u16, 0x88a8]), pick(&[0u16, 3]), pick(&[0u16, 4, 5, 6]));
    let tags = prop::collection::vec(tag, 0..3);
    let ip =
        (pick(&[0u8, 16, 17]), pick(&[0u8, 1, 2, 64]), pick(&[frag::NO, frag::NO, frag::NO, frag::FIRST, frag::LATER]));
    let l4 = (pick(&[0u16, 1000, 1001]), pick(&[80u16, 81, 443]), pick(&[0u16, 2, 0x12]));
    let kinds = (
        0u8..5,
        pick(&[1u8, 6, 17, 47, 58]),
        pick(&[0x0a00_0001u32, 0x0a00_0101, 0x0a80_0001, 0xc0a8_0001]),
        pick(&[0x0a00_0001u32, 0x0a00_0002, 0x0a00_0101, 0x0b00_0001]),
    );
    let v6 = pick(&[1u128, 0x2001_0db8 << 96 | 1, 0x2001_0db9 << 96]);
    (l2, tags, ip, l4, kinds, v6).prop_map(|(l2, tags, ip, l4, (kind, proto, src, dst), v6)| {
        use Field::*;
        let mut key = Key::ZERO;
        key.set(InPort, l2.0);
        key.set(EthSrc, 0x0200_0000_0000 | l2.1);
        key.set(EthDst, l2.2);
        let mut model = Model { key, tags };
        let key = &mut model.key;
        match kind {
            0 => key.set(EthType, 0x88ccu16),
            1 => {
                key.set(EthType, eth_type::ARP);
                key.set(ArpOp, 1 + (ip.0 & 1));
                key.set(ArpSip, src);
                key.set(ArpTip, dst);
                key.set(ArpSha, 0x0200_0000_0000 | l2.1);
            }
            _ => {
                let is_v4 = kind != 2;
                key.set(EthType, if is_v4 { eth_type::IPV4 } else { eth_type::IPV6 });
                key.set(IpProto, proto);
                key.set(IpTos, ip.0);
                key.set(IpTtl, ip.1);
                key.set(IpFrag, ip.2);
                if is_v4 {
                    key.set(Ipv4Src, src);
                    key.set(Ipv4Dst, dst);
                } else {
                    key.set(Ipv6Src, v6);
                    key.set(Ipv6Dst, v6);
                    key.set(Ipv6Label, ip.0 & 7);
                }
                if ip.2 != frag::LATER {
                    l4_of(key, is_v4, proto, l4);
                }
            }
        }
        model.key()
    })
}

fn l4_of(key: &mut Key, is_v4: bool, proto: u8, (src, dst, flags): (u16, u16, u16)) {
    use Field::*;
    match proto {
        ip_proto::TCP | ip_proto::UDP => {
            key.set(TpSrc, src);
            key.set(TpDst, dst);
            if proto == ip_proto::TCP {
                key.set(TcpFlags, flags);
            }
        }
        ip_proto::ICMP if is_v4 => key.set(IcmpType, if src == 0 { 0u8 } else { 8 }),
        ip_proto::ICMP6 if !is_v4 => {
            key.set(Icmp6Type, if src == 0 { 128u8 } else { 135 });
            if src != 0 {
                key.set(NdTarget, (0x2001_0db8 << 96) | u128::from(dst & 1));
            }
        }
        _ => {}
    }
}

fn agree(a: &Key, b: &Key, mask: &Mask) -> bool {
    mask.apply(a) == mask.apply(b)
}

const STATIONS: [Station; 3] = [
    Station { vlan: 0, mac: 0x0200_0000_0001, port: PortNo(1) },
    Station { vlan: 5, mac: 0x0200_0000_0002, port: PortNo(2) },
    Station { vlan: 0, mac: 0x0200_0000_0002, port: PortNo(4) },
];

/// Decides each key and holds the answer against the rules, for it and for all others that its megaflow catches.
fn check(rules: &[String], keys: &[Key]) -> Result<(), TestCaseError> {
    let (slowpath, specs) = slowpath(rules, &STATIONS);
    let now = Instant::now();
    for k in keys {
        let decision = slowpath.decide(k, now, false);
        prop_assert_eq!(decision.dropped.is_some(), decision.actions.is_drop());
        for other in keys.iter().filter(|other| agree(k, other, &decision.mask)) {
            match linear(&specs, &PORTS, &STATIONS, other) {
                Some(sent) => prop_assert_eq!(
                    execute(&decision.actions, other),
                    sent,
                    "rules {:#?}\nkey {:?}\nother {:?}\nmask {:?}",
                    rules,
                    k,
                    other,
                    decision.mask
                ),
                None => prop_assert_eq!(decision.dropped, Some(DropReason::TooDeep)),
            }
        }
        let megaflow = Match::new(k, &decision.mask);
        for other in keys {
            prop_assert_eq!(canonical(&megaflow).matches(other), megaflow.matches(other), "{:?} {:?}", megaflow, other);
        }
        let again = slowpath.revalidate(&megaflow, now);
        prop_assert_eq!(&again.actions, &decision.actions);
        prop_assert!(
            decision.mask.contains(&again.mask),
            "rules {rules:#?}\nkey {k:?}\nmask {:?}\nthen {:?}",
            decision.mask,
            again.mask
        );
    }
    Ok(())
}

/// `k` with bits outside of `mask` taken from other keys of the universe, where that leaves a key of the universe.
fn twins(k: &Key, keys: &[Key]) -> Vec<Key> {
    let mut twins = vec![*k];
    for other in keys.iter().filter(|o| o.eth_type() == k.eth_type() && o.ip_proto() == k.ip_proto()) {
        for (field, value) in
            [Field::InPort, Field::EthSrc, Field::EthDst, Field::Ipv4Src, Field::Ipv4Dst, Field::IpTtl, Field::IpTos]
                .map(|f| (f, other.get(f)))
        {
            let mut twin = *k;
            twin.set(field, value);
            twins.push(twin);
        }
        if k.get(Field::IpFrag) == other.get(Field::IpFrag) {
            for field in [Field::TpSrc, Field::TpDst, Field::TcpFlags] {
                let mut twin = *k;
                twin.set(field, other.get(field));
                twins.push(twin);
            }
        }
        let mut twin = *k;
        twin.words_mut()[3] = other.words()[3];
        twins.push(twin);
    }
    twins
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn every_packet_of_a_megaflow_gets_what_the_rules_say(
        rules in prop::collection::vec(rule(), 1..14),
        keys in prop::collection::vec(key(), 1..10),
    ) {
        let all: Vec<Key> = keys.iter().take(3).flat_map(|k| twins(k, &keys)).chain(keys.iter().copied()).collect();
        check(&rules, &all)?;
    }

    #[test]
    fn what_is_printed_reads_back_the_same(rule in rule(), cookie: u64, idle: u16, hard: u16) {
        let mut spec = text::parse_rule(&rule, &()).unwrap();
        (spec.cookie, spec.idle_timeout, spec.hard_timeout) = (cookie, idle, hard);
        let printed = text::format_rule(&spec, &());
        prop_assert_eq!(text::parse_rule(&printed, &()).map_err(|e| TestCaseError::fail(format!("{printed}: {e}")))?, spec);
    }

    #[test]
    fn no_text_is_a_panic(text in ".{0,80}", almost in "(table=|ip,|tcp6,|nw_dst=|tp_dst=|ip_frag=|tcp_flags=|dl_vlan=|actions=|set_field:|->|resubmit\\(|[0-9a-fx/:.,()+|*-]{0,6}){0,14}") {
        for text in [text, almost] {
            if let Err(error) = text::parse_rule(&text, &()) {
                prop_assert!(error.column <= text.chars().count() + 1, "{error} in {text:?}");
                prop_assert!(!error.what.contains('\n') && error.what.len() < 600);
            }
            let _ = text::parse_filter(&text, true, &());
        }
    }
}

proptest! {
    // Fewer: each tries some hundred rules on some hundred keys.
    #![proptest_config(cases(24))]

    #[test]
    fn large_subtables_are_as_right_as_small_ones(
        seeds in prop::collection::vec((any::<u16>(), 1u16..5), 150..300),
        kinds in prop::collection::vec(0usize..6, 3),
        keys in prop::collection::vec((key(), any::<prop::sample::Index>(), 0u32..3), 4..9),
    ) {
        let parts = |n: u16| (n & 7, n >> 3 & 63);
        let rules: Vec<String> = seeds.iter().enumerate().map(|(i, (n, priority))| {
            let (a, b) = parts(*n);
            let words = match kinds[i % kinds.len()] {
                0 => format!("ip,nw_dst=10.{a}.{b}.0/24"),
                1 => format!("ip,nw_dst=10.{a}.{b}.{}", n >> 9 & 3),
                2 => format!("tcp,nw_dst=10.{a}.0.0/16,tp_dst={}", 40 + b),
                3 => format!("in_port={},dl_dst=02:00:00:00:00:{b:02x}", 1 + a),
                4 => format!("ip,nw_src=10.{a}.0.0/16,nw_dst=10.{a}.{b}.0/20"),
                _ => format!("ip,dl_src=02:00:00:00:00:0{a},nw_dst=10.{a}.{b}.1"),
            };
            format!("priority={priority},{words},actions=output:{}", 1 + a % 5)
        }).collect();
        let mut all: Vec<Key> = Vec::new();
        for (key, index, low) in keys {
            let (a, b) = parts(index.get(&seeds).0);
            let mut near = key;
            near.set(Field::EthDst, 0x0200_0000_0000 | u64::from(b));
            if key.eth_type() == eth_type::IPV4 {
                near.set(Field::Ipv4Dst, 0x0a00_0000 | u32::from(a) << 16 | u32::from(b) << 8 | low);
            }
            all.extend([near, key]);
        }
        let all: Vec<Key> = all.iter().take(6).flat_map(|k| twins(k, &all)).collect();
        check(&rules, &all)?;
    }
}

fn decided(rules: &[&str], key: &Key) -> super::Decision {
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

#[test]
fn rules_that_ask_for_the_port_only_leave_everything_else_wild() {
    let decision = decided(&["in_port=1,actions=output:2", "in_port=2,actions=output:1"], &tcp(0x0a00_0001, 80));
    assert_eq!(decision.mask, mask(&[]));
    assert_eq!(*decision.actions, [Action::Output(PortNo(2))]);
}

#[test]
fn a_set_of_24_bit_prefixes_yields_masks_of_24_bits() {
    for count in [3u32, 200] {
        let rules: Vec<String> = (0..count).map(|i| format!("ip,nw_dst=10.0.{i}.0/24,actions=output:2")).collect();
        let (slowpath, _) = slowpath(&rules, &[]);
        let decision = slowpath.decide(&tcp(0x0a00_0107, 80), Instant::now(), false);
        assert_eq!(decision.mask, mask(&[(Field::Ipv4Dst, 0xffff_ff00)]), "{count} rules");
        assert_eq!(decision.dropped, None);
        let decision = slowpath.decide(&tcp(0xc0a8_0107, 80), Instant::now(), false);
        assert_eq!(decision.mask, mask(&[(Field::Ipv4Dst, 0x8000_0000)]), "{count} rules");
        assert_eq!(decision.dropped, Some(DropReason::NoRule));
    }
}

#[test]
fn longer_prefixes_above_shorter_ones_cost_only_the_bits_that_tell_them_apart() {
    for count in [3u32, 200] {
        let mut rules: Vec<String> =
            (0..count).map(|i| format!("priority=9,ip,nw_dst=10.0.{i}.255,actions=output:3")).collect();
        rules.push("priority=1,ip,nw_dst=10.0.0.0/8,actions=output:2".into());
        let decision = slowpath(&rules, &[]).0.decide(&tcp(0x0a00_0101, 80), Instant::now(), false);
        assert_eq!(decision.mask, mask(&[(Field::Ipv4Dst, 0xffff_ff80)]), "{count} rules");
        assert_eq!(*decision.actions, [Action::Output(PortNo(2))]);
    }
}

#[test]
fn a_better_rule_for_another_protocol_does_not_cost_its_ports() {
    let rules = ["priority=9,udp,tp_dst=53,actions=drop", "priority=1,ip,actions=output:2"];
    assert_eq!(decided(&rules, &tcp(0x0a00_0001, 80)).mask, mask(&[(Field::IpProto, 0xff)]));
}

#[test]
fn rewritten_bits_are_not_looked_at() {
    let rules = ["table=0,ip,actions=mod_nw_dst:10.0.0.1,resubmit(,1)", "table=1,ip,nw_dst=10.0.0.1,actions=output:2"];
    let decision = decided(&rules, &tcp(0x0a63_0001, 80));
    assert_eq!(decision.mask, mask(&[]));
    assert_eq!(decision.rules.len(), 2);
    let [Action::Set(set), Action::Output(PortNo(2))] = &*decision.actions else { panic!("{:?}", decision.actions) };
    assert_eq!((set.header().name(), set.assigns()[0].value), ("ipv4", 0x0a00_0001));
}

#[test]
fn a_later_fragment_has_no_ports_to_rewrite() {
    let rules = [
        "tcp,actions=mod_tp_dst:80,resubmit(,1)",
        "table=1,tcp,tp_dst=80,actions=output:2",
        "table=1,actions=output:3",
    ];
    let mut key = tcp(0x0a00_0001, 0);
    key.set(Field::TpSrc, 0u8);
    key.set(Field::IpFrag, frag::LATER);
    assert_eq!(*decided(&rules, &key).actions, [Action::Output(PortNo(3))]);
}

#[test]
fn rewrites_that_no_output_follows_are_left_out() {
    let decision = decided(&["ip,actions=output:2,mod_nw_dst:10.0.0.1"], &tcp(0x0a63_0001, 80));
    assert_eq!(*decision.actions, [Action::Output(PortNo(2))]);
}

#[test]
fn every_drop_has_its_reason() {
    let key = tcp(0x0a00_0001, 80);
    let reason = |rules: &[&str]| decided(rules, &key).dropped;
    assert_eq!(reason(&[]), Some(DropReason::NoRule));
    assert_eq!(reason(&["actions=drop"]), Some(DropReason::Rule));
    assert_eq!(reason(&["actions=output:1"]), Some(DropReason::Rule));
    assert_eq!(reason(&["actions=output:4"]), Some(DropReason::NoPort));
    assert_eq!(reason(&["ip,actions=mod_nw_ttl:1,dec_ttl,output:2"]), Some(DropReason::Ttl));
    assert_eq!(reason(&["actions=output:2,resubmit(,0)"]), Some(DropReason::TooDeep));
    assert_eq!(reason(&["actions=in_port"]), None);
}

#[test]
fn a_trip_that_branches_forever_ends() {
    let many = format!("actions={}", vec!["resubmit(,1)"; 90].join(","));
    let rules = [many.clone(), format!("table=1,{}", many.replace(",1)", ",2)")), format!("table=2,{many}")];
    let decision = slowpath(&rules, &[]).0.decide(&tcp(1, 1), Instant::now(), false);
    assert_eq!(decision.dropped, Some(DropReason::TooDeep));
    let outputs = format!("table=1,actions={}", vec!["output:2"; 5000].join(","));
    let decision = slowpath(&[many, outputs], &[]).0.decide(&tcp(1, 1), Instant::now(), false);
    assert_eq!(decision.dropped, Some(DropReason::TooDeep));
}

#[test]
fn normal_learns_the_sender_and_then_finds_it() {
    let (slowpath, now) = (slowpath(&["actions=normal".into()], &[]).0, Instant::now());
    let there = tcp(0x0a00_0001, 80);
    let mut back = there;
    back.set(Field::InPort, 3u8);
    back.set(Field::EthSrc, there.get(Field::EthDst));
    back.set(Field::EthDst, there.get(Field::EthSrc));
    let before = slowpath.stations_epoch();
    let flooded = slowpath.decide(&there, now, true);
    assert_eq!(flooded.actions.outputs().collect::<Vec<_>>(), [2, 3, 5].map(PortNo));
    assert!(slowpath.stations_epoch() > before);
    assert_eq!(*slowpath.decide(&back, now, true).actions, [Action::Output(PortNo(1))]);
    assert!(!slowpath.still_true(&flooded.lookups[0]), "the receiver has been heard since");
    let direct = slowpath.decide(&there, now, true);
    assert_eq!(*direct.actions, [Action::Output(PortNo(3))]);
    let whole = |f: Field| (f, f.full());
    assert_eq!(direct.mask, mask(&[whole(Field::EthSrc), whole(Field::EthDst)]));
    slowpath.set_ports(vec![(PortNo(1), "p1".into()), (PortNo(2), "p2".into())]);
    assert!(!slowpath.still_true(&direct.lookups[0]), "its port is gone");
}

#[test]
fn one_address_in_two_vlans_is_two_stations_whatever_the_tags_type() {
    let (slowpath, now) = (slowpath(&["actions=normal".into()], &[]).0, Instant::now());
    let tagged = |tpid: u16, vid: u16, port: u8| {
        let mut key = tcp(0x0a00_0001, 80);
        key.set(Field::InPort, port);
        key.set(Field::Vlan0Cfi, 1u8);
        key.set(Field::Vlan0Tpid, tpid);
        key.set(Field::Vlan0Vid, vid);
        key
    };
    let back = |key: &Key| {
        let mut back = *key;
        back.set(Field::InPort, 5u8);
        back.set(Field::EthSrc, 0x0200_0000_0009u64);
        back.set(Field::EthDst, key.get(Field::EthSrc));
        *slowpath.decide(&back, now, false).actions == [Action::Output(key.in_port())]
    };
    for tpid in [eth_type::QINQ, eth_type::VLAN] {
        let (in_7, in_8) = (tagged(tpid, 7, 1), tagged(tpid, 8, 2));
        slowpath.decide(&in_7, now, true);
        slowpath.decide(&in_8, now, true);
        assert!(back(&in_7) && back(&in_8), "{tpid:#06x}");
    }
    // A vid is the same VLAN in a tag of either type, and none but VLAN 0 has packets without a tag.
    slowpath.decide(&tagged(eth_type::QINQ, 9, 3), now, true);
    assert!(back(&tagged(eth_type::VLAN, 9, 3)));
    assert!(!back(&tcp(0x0a00_0001, 80)));
}

#[test]
fn adding_a_rule_again_replaces_it_and_its_counters() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    slowpath.set_ports(vec![(PortNo(2), "p2".into())]);
    slowpath.add_rules(["ip,actions=drop"], &(), now).unwrap();
    let epoch = slowpath.epoch();
    slowpath.decide(&tcp(1, 1), now, false).rules[0].credit(3, 318, now);
    assert!(slowpath.dump("", &(), now).unwrap()[0].contains("n_packets=3, n_bytes=318"));
    slowpath.add_rules(["ip,actions=output:2"], &(), now).unwrap();
    assert!(slowpath.epoch() > epoch);
    let dump = slowpath.dump("", &(), now).unwrap();
    assert_eq!(
        dump,
        [" cookie=0x0, duration=0.000s, table=0, n_packets=0, n_bytes=0, priority=32768,ip actions=output:2"]
    );
}

#[test]
fn timeouts_count_from_the_last_packet_and_from_the_beginning() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    slowpath
        .add_rules(["ip,idle_timeout=10,actions=drop", "arp,hard_timeout=12,actions=drop", "actions=drop"], &(), now)
        .unwrap();
    assert_eq!(slowpath.expire(after(9)), 0);
    slowpath.decide(&tcp(1, 1), now, false).rules[0].credit(1, 64, after(8));
    let epoch = slowpath.epoch();
    assert_eq!(slowpath.expire(after(11)), 0);
    assert_eq!(slowpath.epoch(), epoch);
    assert_eq!(slowpath.expire(after(12)), 1);
    assert_eq!(slowpath.expire(after(18)), 1);
    assert!(slowpath.epoch() > epoch);
    assert_eq!(slowpath.rule_count(), 1);
}

#[test]
fn one_more_rule_does_not_disturb_the_set_it_came_from() {
    let now = Instant::now();
    let spec = |n: u32| {
        let text = format!("priority={},ip,nw_dst=10.0.{}.{},actions=output:2", n % 9, n >> 8, n & 255);
        text::parse_rule(&text, &()).unwrap()
    };
    let mut draft = super::rules::RuleSet::default().draft();
    (0..1000).for_each(|n| draft.add(spec(n), now).unwrap());
    let old = draft.freeze();
    let mut draft = old.draft();
    draft.add(spec(1000), now).unwrap();
    assert_eq!(draft.remove(|r| r.spec.priority == 0), 112);
    let new = draft.freeze();
    assert_eq!((old.len(), old.sorted().len()), (1000, 1000));
    assert_eq!((new.len(), new.sorted().len()), (889, 889));
}

#[test]
fn a_loose_delete_takes_the_more_specific_and_a_strict_one_the_very_rule() {
    let rules = [
        "priority=1,ip,cookie=0x11,actions=output:2",
        "priority=2,ip,nw_dst=10.0.0.0/8,actions=output:3",
        "table=1,tcp,nw_dst=10.0.0.0/24,cookie=0x12,actions=resubmit(,2)",
        "arp,actions=output:2",
    ];
    let left = |filter: &str, strict| {
        let (slowpath, _) = slowpath(&rules.map(str::to_owned), &[]);
        slowpath.delete_rules(filter, strict, &()).unwrap();
        slowpath.rule_count()
    };
    assert_eq!(left("", false), 0);
    assert_eq!(left("ip", false), 1);
    assert_eq!(left("ip,nw_dst=10.0.0.0/16", false), 3);
    assert_eq!(left("table=1", false), 3);
    assert_eq!(left("cookie=0x10/0xf0", false), 2);
    assert_eq!(left("out_port=2", false), 2);
    assert_eq!(left("ip", true), 4);
    assert_eq!(left("ip,priority=1", true), 3);
}

#[test]
fn a_file_with_one_bad_line_changes_nothing_and_names_the_line() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    let epoch = slowpath.epoch();
    let error = slowpath.load("# rules\nactions=normal # all\n\n  tp_dst=80,actions=drop\n", &(), now).unwrap_err();
    let RuleError::Line { line: 4, error } = &error else { panic!("{error:?}") };
    assert_eq!(error.to_string(), "tp_dst needs tcp, udp or sctp at column 3");
    assert_eq!((slowpath.rule_count(), slowpath.epoch()), (0, epoch));
}

#[test]
fn a_saved_file_loads_as_the_same_rules() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    let file = "table=1,priority=5,tcp,tp_dst=80,cookie=0x7,idle_timeout=3,actions=dec_ttl,goto_table:2\nip,actions=flood\nipv6,actions=all\n";
    assert_eq!(slowpath.load(file, &(), now), Ok(3));
    let saved = slowpath.save();
    let other = Slowpath::default();
    assert_eq!(other.load(&saved, &(), now), Ok(3));
    assert_eq!(other.save(), saved);
    assert!(saved.starts_with("table=0,priority=32768,ip actions=FLOOD\n"), "{saved}");
}

#[test]
fn a_loaded_file_replaces_all_rules() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    slowpath.add_rules(["table=3,ip,actions=drop", "arp,actions=drop"], &(), now).unwrap();
    slowpath.load("arp,actions=flood\n", &(), now).unwrap();
    assert_eq!(slowpath.save(), "table=0,priority=32768,arp actions=FLOOD\n");
    slowpath.load("# nothing\n", &(), now).unwrap();
    assert_eq!(slowpath.rule_count(), 0);
}

#[test]
fn errors_say_where_and_what_would_do() {
    for (rule, wanted) in [
        ("ip", "a rule needs actions=, for instance actions=drop at column 3"),
        ("in_port=p9,actions=drop", "\"p9\" is not a port's name or a number from 1 to 65535 at column 9"),
        ("table=255,actions=drop", "\"255\" is not a number from 0 to 254 at column 7"),
        ("ip,tp_dst=80,actions=drop", "tp_dst needs tcp, udp or sctp at column 4"),
        ("tcp,udp,actions=drop", "udp contradicts what the match says of ip_proto before at column 5"),
        ("ip,nw_dst=10.0.0.0/33,actions=drop", "\"33\" is not a number from 0 to 32 at column 20"),
        ("actions=mod_nw_dst:10.0.0.1", "setting ip_dst needs ip at column 9"),
        (
            "dl_vlan=5,actions=pop_vlan,set_field:6->vlan_vid",
            "setting vlan_vid needs a VLAN tag: dl_vlan=N, vlan_tci=0x1000/0x1000, or an earlier push_vlan at column 28",
        ),
        ("actions=goto_table:1,output:2", "nothing can follow goto_table:1 at column 22"),
        ("table=3,actions=goto_table:3", "\"3\" is not a table after the rule's own, 4 to 254 at column 28"),
        ("actions=", "actions= names none; actions=drop drops at column 9"),
        (
            "é=1,actions=drop",
            "\"é\" is not a word of a match, like in_port, tcp or nw_dst (see offload-flow(7)) at column 1",
        ),
    ] {
        assert_eq!(text::parse_rule(rule, &()).unwrap_err().to_string(), wanted, "{rule}");
    }
}

#[test]
fn an_asterisk_leaves_a_field_wild_and_the_same_packets_match() {
    let plain = text::parse_rule("tcp,actions=drop", &()).unwrap();
    for word in
        ["in_port", "dl_type", "dl_vlan", "dl_src", "nw_dst", "nw_tos", "ip_frag", "tcp_flags", "tp_dst", "arp_op"]
    {
        assert_eq!(text::parse_rule(&format!("tcp,{word}=*,actions=drop"), &()), Ok(plain.clone()), "{word}");
    }
    for wrong in ["tcp=*", "teapot=*", "priority=*", "nw_dst=*/8"] {
        assert!(text::parse_rule(&format!("{wrong},actions=drop"), &()).is_err(), "{wrong}");
    }
}

#[test]
fn a_line_of_a_dump_can_be_added_and_is_the_same_rule() {
    let (first, now) = (Slowpath::default(), Instant::now());
    let rule = "table=1,priority=5,tcp,tp_dst=80,tcp_flags=syn,cookie=0x7,idle_timeout=3,actions=dec_ttl,goto_table:2";
    first.add_rules([rule], &(), now).unwrap();
    let dump = first.dump("", &(), now + Duration::from_secs(5)).unwrap();
    let second = Slowpath::default();
    second.add_rules(dump.iter().map(String::as_str), &(), now).unwrap();
    assert_eq!(second.save(), first.save());
    let aged = format!("idle_age=2, hard_age=9,{rule}");
    assert_eq!(text::parse_rule(&aged, &()), text::parse_rule(rule, &()));
    assert_eq!(second.dump("n_packets=0, n_bytes=0, duration=5s, tcp", &(), now).unwrap().len(), 1);
}

#[test]
fn a_bare_number_is_the_ports_number_even_if_another_port_is_called_so() {
    struct Named;
    impl PortNames for Named {
        fn number(&self, name: &str) -> Option<PortNo> {
            [("1", 7), ("70000", 8), ("p9", 9)].iter().find(|(n, _)| *n == name).map(|(_, number)| PortNo(*number))
        }

        fn name(&self, number: PortNo) -> Option<String> {
            (number == PortNo(7)).then(|| "1".to_owned())
        }
    }
    for (words, wanted) in [("1", Some(1)), ("\"1\"", Some(7)), ("70000", Some(8)), ("p9", Some(9)), ("\"9\"", None)] {
        let read = text::parse_rule(&format!("in_port={words},actions=output:{words},{words}"), &Named);
        let got = read.as_ref().ok().map(|spec| (spec.matching.key().in_port(), spec.actions.to_vec()));
        let port = wanted.map(PortNo);
        assert_eq!(got, port.map(|p| (p, vec![RuleAction::Output(p); 2])), "{words}");
        if let Ok(spec) = read {
            assert_eq!(text::parse_rule(&text::format_rule(&spec, &Named), &Named), Ok(spec));
        }
    }
}

#[test]
fn the_words_of_ovs_ofctl_are_understood() {
    for (rule, printed) in [
        (
            "table=0,priority=100,in_port=1,tcp,nw_dst=10.0.0.0/24,tp_dst=80,cookie=0x1,idle_timeout=10,hard_timeout=60,actions=1",
            "cookie=0x1,table=0,idle_timeout=10,hard_timeout=60,priority=100,tcp,in_port=1,nw_dst=10.0.0.0/24,tp_dst=80 actions=output:1",
        ),
        ("dl_type=0x800 nw_proto=17 udp_src=5, actions=NORMAL", "table=0,priority=32768,udp,tp_src=5 actions=NORMAL"),
        ("dl_vlan=0xffff,actions=strip_vlan", "table=0,priority=32768,vlan_tci=0x0000/0x1000 actions=pop_vlan"),
        (
            "vlan_vid=7,vlan_pcp=2,actions=set_field:4196->vlan_vid,2",
            "table=0,priority=32768,dl_vlan=7,dl_vlan_pcp=2 actions=set_field:100->vlan_vid,output:2",
        ),
        ("tcp,tcp_flags=+syn-ack,actions=drop", "table=0,priority=32768,tcp,tcp_flags=+syn-ack actions=drop"),
        (
            "tcp6,tcp_flags=0x800/0x800,nw_tos=0x20,actions=drop",
            "table=0,priority=32768,tcp6,tcp_flags=0x800/0x800,ip_dscp=8 actions=drop",
        ),
        (
            "arp,nw_src=10.0.0.1,nw_proto=2,actions=drop",
            "table=0,priority=32768,arp,arp_spa=10.0.0.1,arp_op=2 actions=drop",
        ),
        (
            "mplsm,mpls_label=16,mpls_bos=1,actions=drop",
            "table=0,priority=32768,mplsm,mpls_label=16,mpls_bos=1 actions=drop",
        ),
        (
            "icmp6,icmpv6_type=136,icmpv6_code=0,nd_tll=02:00:00:00:00:01,actions=drop",
            "table=0,priority=32768,icmp6,icmp_type=136,icmp_code=0,nd_tll=02:00:00:00:00:01 actions=drop",
        ),
        (
            "ip,nw_dst=0.0.0.1/0.0.0.255,ip_frag=not_later,actions=resubmit(2,7),resubmit:3,resubmit(,4)",
            "table=0,priority=32768,ip,ip_frag=not_later,nw_dst=0.0.0.1/0.0.0.255 actions=resubmit(2,7),resubmit(3,),resubmit(,4)",
        ),
        ("tcp,tcp_flags=syn,actions=drop", "table=0,priority=32768,tcp,tcp_flags=syn actions=drop"),
        ("tcp6,tcp_flags=ack|syn,actions=drop", "table=0,priority=32768,tcp6,tcp_flags=syn|ack actions=drop"),
        ("tcp,tcp_flags=0,actions=drop", "table=0,priority=32768,tcp,tcp_flags=0x000/0xfff actions=drop"),
        ("tcp,tcp_flags=0x12,actions=drop", "table=0,priority=32768,tcp,tcp_flags=syn|ack actions=drop"),
        (
            "ip6,actions=mod_nw_ecn:2,set_field:1->ip_ecn",
            "table=0,priority=32768,ipv6 actions=set_field:2->nw_ecn,set_field:1->nw_ecn",
        ),
        ("actions=set_vlan_vid:5,set_vlan_pcp:3", "table=0,priority=32768 actions=mod_vlan_vid:5,mod_vlan_pcp:3"),
        ("icmp,tp_src=8,tp_dst=0,actions=drop", "table=0,priority=32768,icmp,icmp_type=8,icmp_code=0 actions=drop"),
        (
            "icmp6,tp_src=135,tp_dst=0,nd_target=::1,actions=drop",
            "table=0,priority=32768,icmp6,icmp_type=135,icmp_code=0,nd_target=::1 actions=drop",
        ),
        (
            "sctp,actions=mod_tp_src:9,mod_nw_tos:8,set_field:02:00:00:00:00:00/ff:ff:00:00:00:00->eth_src",
            "table=0,priority=32768,sctp actions=set_field:9->tp_src,set_field:2->ip_dscp,set_field:02:00:00:00:00:00/ff:ff:00:00:00:00->eth_src",
        ),
    ] {
        let got = text::parse_rule(rule, &()).map(|spec| text::format_rule(&spec, &())).unwrap_or_default();
        assert_eq!(got, printed, "{rule}");
    }
}
