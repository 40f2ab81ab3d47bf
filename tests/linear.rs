//! A rule set, and what it says about a frame: one rule after another, one byte after another.
//!
//! Each rule stands here twice: as the text that the daemon is given, and as a condition and steps in terms of
//! [`Seen`], a reading of the frame that follows the same RFCs as the daemon's and shares no line with it. Checksums are
//! amended by RFC 1624, so that a frame that came damaged is expected to leave damaged; SCTP's is computed anew.

use crate::capture::crc32c;

/// The ports that the rules know.
pub const PORTS: [u32; 5] = [1, 2, 3, 4, 5];

/// The rules as a file for the daemon.
pub fn text() -> String {
    rules().iter().map(|rule| rule.text.clone() + "\n").collect()
}

/// What the rules send when `frame` arrives at `in_port`: ports and bytes, in order.
pub fn evaluate(rules: &[Rule], in_port: u32, frame: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut trip = Trip { rules, in_port, frame: frame.to_vec(), out: Vec::new() };
    trip.table(0);
    trip.out
}

/// What tells a frame's flow from others: everything that a rule could tell it by, but for what changes within a flow.
pub fn flow_of(frame: &[u8]) -> Vec<u8> {
    let seen = Seen::of(frame, 2);
    let mut id = frame[..12].to_vec();
    for (tpid, tci) in &seen.tags {
        id.extend(tpid.to_be_bytes());
        id.extend((tci & 0xefff).to_be_bytes());
    }
    id.extend(seen.eth_type.to_be_bytes());
    if let Some(ip) = &seen.ip {
        id.extend([&ip.src[..], &ip.dst, &[ip.proto, ip.fragment as u8]].concat());
        let (src, dst) = ip.ports.unwrap_or_default();
        id.extend([src.to_be_bytes(), dst.to_be_bytes()].concat());
    }
    id
}

/// One rule, twice.
pub struct Rule {
    table: u8,
    text: String,
    matches: Box<dyn Fn(&Seen) -> bool>,
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    Output(u32),
    InPort,
    Flood,
    Table(u8),
    Push(u16),
    Pop,
    Vid(u16),
    Pcp(u16),
    DlSrc([u8; 6]),
    DlDst([u8; 6]),
    NwSrc([u8; 4]),
    NwDst([u8; 4]),
    Ipv6Src([u8; 16]),
    Dscp(u8),
    TpSrc(u16),
    TpDst(u16),
    DecTtl,
}

const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const NEW_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34];

const UDP: u8 = 17;
const TCP: u8 = 6;
const SCTP: u8 = 132;

/// The rules, in the order in which they are to be tried.
pub fn rules() -> Vec<Rule> {
    use Step::*;
    let rule = |text: &str, matches: fn(&Seen) -> bool, steps: &[Step]| Rule {
        table: u8::from(text.starts_with("table=1,")),
        text: text.to_owned(),
        matches: Box::new(matches),
        steps: steps.to_vec(),
    };
    let vlan = |vid: u16, actions: &str, steps: &[Step]| Rule {
        table: 0,
        text: format!("priority=300,dl_vlan={vid},actions={actions}"),
        matches: Box::new(move |seen| seen.vid() == Some(vid)),
        steps: steps.to_vec(),
    };
    let mut rules = vec![
        rule("priority=400,udp,tp_dst=53,actions=drop", |seen| seen.v4(UDP) && seen.to(53), &[]),
        rule(
            "priority=390,udp6,tp_dst=443,actions=set_field:2001:db8::1234->ipv6_src,mod_tp_dst:8443,output:4",
            |seen| seen.v6() && seen.proto() == UDP && seen.to(443),
            &[Ipv6Src(NEW_V6), TpDst(8443), Output(4)],
        ),
    ];
    rules.extend((1..=8).map(|vid| vlan(vid, "strip_vlan,output:2", &[Pop, Output(2)])));
    rules.extend((9..=16).map(|vid| vlan(vid, "mod_vlan_vid:99,output:2", &[Vid(99), Output(2)])));
    rules.extend((17..=20).map(|vid| {
        let actions = "push_vlan:0x88a8,mod_vlan_vid:200,mod_vlan_pcp:5,output:3";
        vlan(vid, actions, &[Push(0x88a8), Vid(200), Pcp(5), Output(3)])
    }));
    rules.extend(
        (21..=24).map(|vid| vlan(vid, "output:2,strip_vlan,strip_vlan,output:5", &[Output(2), Pop, Pop, Output(5)])),
    );
    rules.extend([
        rule(
            "priority=200,tcp,nw_dst=10.0.0.0/16,\
             actions=mod_nw_dst:192.0.2.1,mod_tp_dst:8080,mod_dl_dst:02:00:00:00:00:aa,dec_ttl,output:3",
            |seen| seen.v4(TCP) && seen.nw_dst([10, 0]),
            &[NwDst([192, 0, 2, 1]), TpDst(8080), DlDst(ROUTER), DecTtl, Output(3)],
        ),
        rule(
            "priority=190,ipv6,ipv6_dst=2001:db8:0:0:8000::/65,actions=set_field:2001:db8::1234->ipv6_src,dec_ttl,output:4",
            |seen| seen.v6() && seen.dst()[..8] == NEW_V6[..8] && seen.dst()[8] & 0x80 != 0,
            &[Ipv6Src(NEW_V6), DecTtl, Output(4)],
        ),
        rule("priority=180,arp,actions=flood", |seen| seen.eth_type == 0x0806, &[Flood]),
        rule(
            "priority=180,icmp,actions=mod_nw_src:192.0.2.9,in_port",
            |seen| seen.v4(1),
            &[NwSrc([192, 0, 2, 9]), InPort],
        ),
        rule(
            "priority=180,sctp,actions=mod_tp_dst:7,output:5,output:2",
            |seen| seen.v4(SCTP),
            &[TpDst(7), Output(5), Output(2)],
        ),
        rule(
            "priority=170,dl_type=0x8847,actions=mod_dl_src:02:00:00:00:00:aa,output:5",
            |seen| seen.eth_type == 0x8847,
            &[DlSrc(ROUTER), Output(5)],
        ),
        rule("priority=150,udp,actions=goto_table:1", |seen| seen.v4(UDP), &[Table(1)]),
        rule(
            "priority=100,dl_src=02:00:00:00:00:00/ff:ff:ff:ff:ff:00,dl_dst=02:00:00:00:01:00/ff:ff:ff:ff:ff:00,\
             actions=normal",
            // No station with such an address is ever learned, so that the learning switch sends everywhere.
            |seen| seen.stations[..5] == [2, 0, 0, 0, 1] && seen.stations[6..11] == [2, 0, 0, 0, 0],
            &[Flood],
        ),
        rule("priority=0,actions=output:4", |_| true, &[Output(4)]),
        rule(
            "table=1,priority=10,udp,nw_dst=10.1.0.0/16,actions=output:2,mod_nw_tos:32,output:3",
            |seen| seen.v4(UDP) && seen.nw_dst([10, 1]),
            &[Output(2), Dscp(32), Output(3)],
        ),
        rule(
            "table=1,priority=5,udp,tp_dst=443,actions=mod_tp_src:4443,output:4",
            |seen| seen.v4(UDP) && seen.to(443),
            &[TpSrc(4443), Output(4)],
        ),
        rule("table=1,priority=0,actions=output:5", |_| true, &[Output(5)]),
    ]);
    rules
}

struct Trip<'a> {
    rules: &'a [Rule],
    in_port: u32,
    frame: Vec<u8>,
    out: Vec<(u32, Vec<u8>)>,
}

/// A hop limit is used up: what follows is not done.
struct Expired;

impl Trip<'_> {
    fn table(&mut self, table: u8) -> Option<Expired> {
        let seen = Seen::of(&self.frame, 2);
        let rule = self.rules.iter().find(|rule| rule.table == table && (rule.matches)(&seen))?;
        rule.steps.iter().find_map(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Option<Expired> {
        match *step {
            // Back where it came from goes only what is sent there by that name.
            Step::Output(port) if port == self.in_port => {}
            Step::Output(port) => self.out.push((port, self.frame.clone())),
            Step::InPort => self.out.push((self.in_port, self.frame.clone())),
            Step::Flood => {
                let others = PORTS.into_iter().filter(|port| *port != self.in_port);
                self.out.extend(others.map(|port| (port, self.frame.clone())));
            }
            Step::Table(table) => return self.table(table),
            Step::Push(tpid) => {
                let [high, low] = tpid.to_be_bytes();
                self.frame.splice(12..12, [high, low, 0, 0]);
            }
            Step::Pop => {
                if !Seen::of(&self.frame, 1).tags.is_empty() {
                    self.frame.drain(12..16);
                }
            }
            Step::Vid(vid) => self.tag(|tci| tci & 0xf000 | vid),
            Step::Pcp(pcp) => self.tag(|tci| tci & 0x1fff | pcp << 13),
            Step::DlSrc(station) => self.frame[6..12].copy_from_slice(&station),
            Step::DlDst(station) => self.frame[..6].copy_from_slice(&station),
            Step::NwSrc(address) => self.network(12, &address, true),
            Step::NwDst(address) => self.network(16, &address, true),
            Step::Ipv6Src(address) => self.network(8, &address, true),
            Step::Dscp(tos) => {
                if let (at, Some(_)) = self.ip() {
                    let kept = self.frame[at + 1] & 3;
                    let version = self.frame[at];
                    self.network(0, &[version, tos | kept], false);
                }
            }
            Step::TpSrc(port) => self.transport(0, port),
            Step::TpDst(port) => self.transport(2, port),
            Step::DecTtl => {
                let (at, Some(ip)) = self.ip() else { return Some(Expired) };
                if ip.ttl <= 1 {
                    return Some(Expired);
                }
                if ip.v6 {
                    self.frame[at + 7] -= 1;
                } else {
                    self.network(8, &[ip.ttl - 1, ip.proto], false);
                }
            }
        }
        None
    }

    fn tag(&mut self, change: impl Fn(u16) -> u16) {
        let tci = u16::from_be_bytes([self.frame[14], self.frame[15]]);
        self.frame[14..16].copy_from_slice(&change(tci).to_be_bytes());
    }

    /// Where the IP header begins, and what it says.
    fn ip(&self) -> (usize, Option<Ip>) {
        let seen = Seen::of(&self.frame, usize::MAX);
        (seen.network_at, seen.ip)
    }

    /// Writes into the IP header, and amends its checksum; for addresses also the one of what it carries.
    fn network(&mut self, offset: usize, new: &[u8], address: bool) {
        let (at, Some(ip)) = self.ip() else { return };
        let place = at + offset..at + offset + new.len();
        let old = self.frame[place.clone()].to_vec();
        self.frame[place].copy_from_slice(new);
        if !ip.v6 {
            amend(&mut self.frame[at + 10..at + 12], &old, new, false);
        }
        if address {
            self.amend_transport(&ip, &old, new);
        }
    }

    fn transport(&mut self, offset: usize, port: u16) {
        let (_, Some(ip)) = self.ip() else { return };
        if ip.ports.is_none() {
            return;
        }
        let place = ip.transport_at + offset..ip.transport_at + offset + 2;
        let old = self.frame[place.clone()].to_vec();
        self.frame[place].copy_from_slice(&port.to_be_bytes());
        if ip.proto == SCTP {
            let packet = &mut self.frame[ip.transport_at..ip.end];
            packet[8..12].fill(0);
            let sum = crc32c(packet).to_le_bytes();
            packet[8..12].copy_from_slice(&sum);
        } else {
            self.amend_transport(&ip, &old, &port.to_be_bytes());
        }
    }

    fn amend_transport(&mut self, ip: &Ip, old: &[u8], new: &[u8]) {
        let offset = match ip.proto {
            TCP => 16,
            UDP => 6,
            58 if ip.v6 => 2,
            _ => return,
        };
        let at = ip.transport_at + offset;
        if ip.fragment != Fragment::Later && at + 2 <= ip.end {
            amend(&mut self.frame[at..at + 2], old, new, ip.proto == UDP);
        }
    }
}

/// RFC 1624, equation 3. A UDP datagram without a checksum stays without (RFC 768).
fn amend(checksum: &mut [u8], old: &[u8], new: &[u8], udp: bool) {
    let words = |bytes: &[u8]| bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect::<Vec<_>>();
    let before = words(checksum)[0];
    if udp && before == 0 {
        return;
    }
    let mut sum = u32::from(!before);
    sum += words(old).iter().map(|word| u32::from(!word)).sum::<u32>();
    sum += words(new).iter().map(|word| u32::from(*word)).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let after = match !(sum as u16) {
        0 if udp => 0xffff,
        after => after,
    };
    checksum.copy_from_slice(&after.to_be_bytes());
}

/// A frame, read.
pub struct Seen {
    /// Receiver and sender.
    stations: [u8; 12],
    /// TPID and TCI, the outermost first.
    tags: Vec<(u16, u16)>,
    eth_type: u16,
    network_at: usize,
    /// `None` for what is not IP, and for IP whose lengths are wrong.
    ip: Option<Ip>,
}

struct Ip {
    v6: bool,
    src: Vec<u8>,
    dst: Vec<u8>,
    proto: u8,
    ttl: u8,
    fragment: Fragment,
    transport_at: usize,
    end: usize,
    /// Of TCP, UDP and SCTP whose header is there as a whole.
    ports: Option<(u16, u16)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragment {
    No,
    First,
    Later,
}

impl Seen {
    /// Reads up to `max_tags` VLAN tags and what follows; a tag that is cut off is none.
    fn of(frame: &[u8], max_tags: usize) -> Seen {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (mut tags, mut at) = (Vec::new(), 12);
        while tags.len() < max_tags && [0x8100, 0x88a8].contains(&word(at)) && frame.len() >= at + 6 {
            tags.push((word(at), word(at + 2)));
            at += 4;
        }
        let eth_type = word(at);
        let network_at = at + 2;
        let ip = match eth_type {
            0x0800 => Ip::v4(frame, network_at),
            0x86dd => Ip::v6(frame, network_at),
            _ => None,
        };
        Seen { stations: frame[..12].try_into().unwrap(), tags, eth_type, network_at, ip }
    }

    fn vid(&self) -> Option<u16> {
        self.tags.first().map(|(_, tci)| tci & 0xfff)
    }

    fn v4(&self, proto: u8) -> bool {
        self.ip.as_ref().is_some_and(|ip| !ip.v6 && ip.proto == proto)
    }

    fn v6(&self) -> bool {
        self.ip.as_ref().is_some_and(|ip| ip.v6)
    }

    fn proto(&self) -> u8 {
        self.ip.as_ref().map_or(0, |ip| ip.proto)
    }

    fn dst(&self) -> &[u8] {
        &self.ip.as_ref().unwrap().dst
    }

    fn nw_dst(&self, net: [u8; 2]) -> bool {
        self.dst()[..2] == net
    }

    fn to(&self, port: u16) -> bool {
        self.ip.as_ref().and_then(|ip| ip.ports).is_some_and(|(_, to)| to == port)
    }
}

impl Ip {
    /// RFC 791.
    fn v4(frame: &[u8], at: usize) -> Option<Ip> {
        let header = frame.get(at..at + 20)?;
        let length = usize::from(header[0] % 16) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] / 16 != 4 || length < 20 || total < length || at + total > frame.len() {
            return None;
        }
        let fragment = match (header[6] & 0x20 != 0, u16::from_be_bytes([header[6] & 0x1f, header[7]])) {
            (false, 0) => Fragment::No,
            (true, 0) => Fragment::First,
            _ => Fragment::Later,
        };
        let ip = Ip {
            v6: false,
            src: header[12..16].to_vec(),
            dst: header[16..20].to_vec(),
            proto: header[9],
            ttl: header[8],
            fragment,
            transport_at: at + length,
            end: at + total,
            ports: None,
        };
        Some(ip.with_ports(frame))
    }

    /// RFC 8200. A chain of extension headers that runs off the end has nothing behind it.
    fn v6(frame: &[u8], at: usize) -> Option<Ip> {
        let header = frame.get(at..at + 40)?;
        let end = at + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] / 16 != 6 || end > frame.len() {
            return None;
        }
        let mut ip = Ip {
            v6: true,
            src: header[8..24].to_vec(),
            dst: header[24..40].to_vec(),
            proto: header[6],
            ttl: header[7],
            fragment: Fragment::No,
            transport_at: at + 40,
            end,
            ports: None,
        };
        loop {
            let rest = &frame[ip.transport_at..end];
            let length = match (ip.proto, rest) {
                (0 | 43 | 60, &[_, words, ..]) => (usize::from(words) + 1) * 8,
                (51, &[_, words, ..]) => (usize::from(words) + 2) * 4,
                (44, _) => 8,
                (0 | 43 | 60 | 51, _) => return Some(ip),
                _ => return Some(ip.with_ports(frame)),
            };
            if rest.len() < length {
                return Some(ip);
            }
            if ip.proto == 44 {
                let field = u16::from_be_bytes([rest[2], rest[3]]);
                ip.fragment = match (field >> 3, field & 1) {
                    (0, 0) => Fragment::No,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                if ip.fragment == Fragment::Later {
                    // Only the first is sure to tell what the datagram is.
                    return Some(ip);
                }
            }
            (ip.proto, ip.transport_at) = (rest[0], ip.transport_at + length);
        }
    }

    fn with_ports(mut self, frame: &[u8]) -> Ip {
        let shortest = match self.proto {
            TCP => 20,
            UDP => 8,
            SCTP => 12,
            _ => return self,
        };
        let header = &frame[self.transport_at..self.end];
        if self.fragment != Fragment::Later && header.len() >= shortest {
            let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
            self.ports = Some((port(0), port(2)));
        }
        self
    }
}
