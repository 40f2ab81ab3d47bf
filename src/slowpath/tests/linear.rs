//! Decisions held against a plain reading of the rules.
//!
//! [`linear`] knows nothing of subtables, masks or bits looked at: it scans all rules in order and does to a model of a packet
//! (a key and a stack of tags) what they say, output by output. [`execute`] does to the same model what datapath actions
//! say. Both must send the same packets to the same ports, for the packet that was decided and for every other that its megaflow catches.

use std::time::Instant;

use proptest::prelude::*;

use super::{PORTS, slowpath};

use crate::flow::key::{eth_type, frag, ip_proto};
use crate::flow::text::canonical;
use crate::flow::{Action, Field, Key, Mask, Match, PortNo};
use crate::slowpath::learn::Station;
use crate::slowpath::rules::{RuleAction, RuleSpec};
use crate::slowpath::{DropReason, decide, text};

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
