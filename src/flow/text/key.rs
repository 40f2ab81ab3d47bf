//! Keys: [`parse()`], [`format()`] and [`canonical()`], which must agree on what a match can say.
//!
//! All three walk the packet from its front: a tag, perhaps a second ([`Presence`] decides), then the packet's type, then the
//! attributes that this type allows.

use std::fmt::Write;

use super::attribute::{ATTRIBUTES, Attribute, Draft, ETH, List, VLAN, format_field};
use super::language::{self, Node};
use super::scan::{Scanner, integer, quote};
use super::value::{self, Masked};
use super::{FlowText, PortNames, TextError, printable_name};
use crate::flow::key::eth_type;
use crate::flow::{Field, Match, PortNo, Ufid};

/// Fields of the two tags, from the packet's front.
const TPID: [Field; 2] = [Field::Vlan0Tpid, Field::Vlan1Tpid];
const CFI: [Field; 2] = [Field::Vlan0Cfi, Field::Vlan1Cfi];
const VID: [Field; 2] = [Field::Vlan0Vid, Field::Vlan1Vid];
const PCP: [Field; 2] = [Field::Vlan0Pcp, Field::Vlan1Pcp];

/// Keys that Open vSwitch prints and this datapath has not, where its verbose dumps print them: in front of `in_port`, and behind.
const FOREIGN_BEFORE: &str = "dp_hash(0/0),skb_priority(0/0)";
const FOREIGN_BEHIND: &str = "skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0)";

/// What a match says of a tag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Any,
    Absent,
    Present,
}

/// Of the tag at `depth` in `m`; behind two tags there is none to speak of.
fn presence(m: &Match, depth: usize) -> Presence {
    match CFI.get(depth) {
        Some(cfi) if !m.mask().is_exact(*cfi) => Presence::Any,
        Some(cfi) if m.key().get(*cfi) == 1 => Presence::Present,
        _ => Presence::Absent,
    }
}

pub fn canonical(m: &Match) -> Match {
    let mut draft = Draft::default();
    let mut keep = |fields: &[Field]| {
        for field in fields {
            draft.set(*field, Masked::of(m, *field));
        }
        draft.finish()
    };
    keep(&[Field::RecircId, Field::InPort, Field::EthSrc, Field::EthDst, Field::EthType]);
    for depth in 0..CFI.len() {
        keep(&[CFI[depth]]);
        if presence(m, depth) != Presence::Present {
            break;
        }
        keep(&[TPID[depth], VID[depth], PCP[depth]]);
    }
    let mut kept = keep(&[]);
    for attribute in &ATTRIBUTES {
        if attribute.needs.met(&kept) {
            for (_, field) in attribute.fields {
                kept = keep(&[*field]);
            }
        }
    }
    kept
}

pub fn format(m: &Match, verbose: bool, ports: &dyn PortNames) -> String {
    let m = &canonical(m);
    let mut out = List::default();
    let single = |out: &mut List, name: &str, field: Field| {
        if verbose || m.mask().get(field) != 0 {
            out.item(|out| {
                out.push_str(name);
                out.push('(');
                match port_name(m, field, ports) {
                    Some(name) => out.push_str(&name),
                    None => value::format(out, field, Masked::of(m, field)),
                }
                out.push(')');
            });
        }
    };
    single(&mut out, "recirc_id", Field::RecircId);
    if verbose {
        out.item(|out| out.push_str(FOREIGN_BEFORE));
    }
    single(&mut out, "in_port", Field::InPort);
    if verbose {
        out.item(|out| out.push_str(FOREIGN_BEHIND));
    }
    out.item(|out| out.push_str("packet_type(ns=0,id=0)"));
    ETH.format(&mut out, m, verbose);
    format_from(&mut out, m, 0, verbose);
    out.into_text()
}

/// The name of the port that `field` of `m` says, if it is a port's field and says one.
fn port_name(m: &Match, field: Field, ports: &dyn PortNames) -> Option<String> {
    (field == Field::InPort && m.mask().is_exact(field)).then(|| printable_name(m.key().in_port(), ports))?
}

/// Prints what `m` says from the tag at `depth` on.
fn format_from(out: &mut List, m: &Match, depth: usize, verbose: bool) {
    let presence = presence(m, depth);
    let type_field = if presence == Presence::Present { TPID[depth] } else { Field::EthType };
    let Masked { value, mask } = Masked::of(m, type_field);
    if mask != 0 || verbose {
        out.item(|out| {
            let _ = write!(out, "eth_type({value:#06x}");
            let _ = if mask == type_field.full() { write!(out, ")") } else { write!(out, "/{mask:#06x})") };
        });
    }
    let says_tag = is_tag_type(Masked { value, mask });
    match presence {
        Presence::Present => {
            let mut body = List::default();
            for (name, field) in [("vid", VID[depth]), ("pcp", PCP[depth])] {
                if verbose || m.mask().get(field) != 0 {
                    body.item(|out| format_field(out, name, field, Masked::of(m, field)));
                }
            }
            if body.is_empty() && !says_tag {
                body.item(|out| out.push_str("cfi=1"));
            }
            out.item(|out| body.wrap(out, "vlan"));
            let mut inside = List::default();
            format_from(&mut inside, m, depth + 1, verbose);
            if !inside.is_empty() {
                out.item(|out| inside.wrap(out, "encap"));
            }
            return;
        }
        Presence::Absent if depth < CFI.len() && (mask == 0 || says_tag) => out.item(|out| out.push_str("vlan(cfi=0)")),
        Presence::Any if mask != 0 => out.item(|out| out.push_str("vlan(cfi=0/0)")),
        Presence::Absent | Presence::Any => {}
    }
    for attribute in ATTRIBUTES.iter().filter(|a| a.needs.met(m)) {
        if attribute.name == "mpls" {
            format_mpls(out, attribute, m, verbose);
        } else {
            attribute.format(out, m, verbose);
        }
    }
}

/// Prints the label stack: as many labels as are looked at, whole, and with all masks or none.
fn format_mpls(out: &mut List, attribute: &Attribute, m: &Match, verbose: bool) {
    const ENTRY: usize = 4;
    let looked_at = |entry: &&[(&str, Field)]| entry.iter().any(|(_, field)| m.mask().get(*field) != 0);
    let entries: Vec<_> = attribute.fields.chunks(ENTRY).collect();
    let count = entries.iter().rposition(looked_at).map_or(usize::from(verbose), |last| last + 1);
    let fields = &attribute.fields[..count * ENTRY];
    let exact = fields.iter().all(|(_, field)| m.mask().is_exact(*field));
    let mut body = List::default();
    for (name, field) in fields {
        body.item(|out| {
            let Masked { value, mask } = Masked::of(m, *field);
            let _ = write!(out, "{name}={value}");
            let _ = match *name {
                _ if exact => Ok(()),
                "label" | "ttl" => write!(out, "/{mask:#x}"),
                _ => write!(out, "/{mask:x}"),
            };
        });
    }
    if !body.is_empty() {
        out.item(|out| body.wrap(out, attribute.name));
    }
}

pub fn parse(text: &str, ports: &dyn PortNames) -> Result<FlowText, TextError> {
    let mut s = Scanner::new(text);
    s.skip_separators();
    let ufid = parse_ufid(&mut s)?;
    let mut reader = Reader { s, ports, draft: Draft::default(), seen: Vec::new() };
    let front = reader.level(0)?;
    reader.settle(0, &front)?;
    Ok(FlowText { ufid, matching: canonical(&reader.draft.finish()) })
}

fn parse_ufid(s: &mut Scanner<'_>) -> Result<Option<Ufid>, TextError> {
    /// Of the hyphenated form.
    const UUID_CHARS: usize = 36;
    if !s.eat("ufid:") {
        return Ok(None);
    }
    let place = s.place();
    let text = s.word();
    match text.parse() {
        Ok(ufid) if text.len() == UUID_CHARS => Ok(Some(ufid)),
        _ => Err(s.error_at(place, format!("ufid: {} is no UUID", quote(text)))),
    }
}

/// What a flow's text says, while it is read.
struct Reader<'a> {
    s: Scanner<'a>,
    ports: &'a dyn PortNames,
    draft: Draft,
    /// Attributes that may stand once in the whole text.
    seen: Vec<&'a str>,
}

/// What was written at the packet's front, or inside one `encap(…)`. Places are where the attribute begins.
#[derive(Default)]
struct Level {
    eth_type: Option<(usize, Masked)>,
    vlan: Option<(usize, Vec<(Field, Masked)>)>,
    encap: Option<(usize, Box<Level>)>,
    following: Vec<(usize, &'static Attribute)>,
}

impl<'a> Reader<'a> {
    /// Reads attributes up to the end, or, inside `encap(`, up to its closing parenthesis.
    fn level(&mut self, depth: usize) -> Result<Level, TextError> {
        let mut level = Level::default();
        loop {
            let at_end = if depth > 0 {
                self.s.at_body_end(true)?
            } else {
                self.s.skip_separators();
                self.s.is_at_end()
            };
            if at_end {
                return Ok(level);
            }
            self.attribute(depth, &mut level)?;
        }
    }

    /// Reads one attribute.
    fn attribute(&mut self, depth: usize, level: &mut Level) -> Result<(), TextError> {
        let place = self.s.place();
        let name = self.s.word();
        if !name.is_empty() && !self.s.eat("(") {
            let found = self.s.found();
            return Err(self
                .s
                .error_at(self.s.place(), format!("expected \"(\" behind {}, found {found}", quote(name))));
        }
        let again = match name {
            "eth_type" => level.eth_type.is_some(),
            "vlan" => level.vlan.is_some(),
            "encap" => level.encap.is_some(),
            _ => self.seen.contains(&name),
        };
        if again {
            return Err(self.s.error_at(place, format!("{name} is given twice")));
        }
        match name {
            "eth_type" => level.eth_type = Some((place, self.single(Field::EthType, name)?)),
            "vlan" | "encap" if depth == CFI.len() => {
                return Err(self.s.error_at(place, "a third VLAN tag is not supported by this datapath"));
            }
            "vlan" => level.vlan = Some((place, VLAN[depth].parse(&mut self.s)?)),
            "encap" => level.encap = Some((place, Box::new(self.level(depth + 1)?))),
            _ => {
                self.once(place, name, depth, level)?;
                self.seen.push(name);
            }
        }
        Ok(())
    }

    /// Reads an attribute that stands once in the whole text.
    fn once(&mut self, place: usize, name: &str, depth: usize, level: &mut Level) -> Result<(), TextError> {
        if let Some(attribute) = ATTRIBUTES.iter().find(|a| a.name == name) {
            level.following.push((place, attribute));
            return self.fields(attribute);
        }
        if !language::is_key(name) {
            return Err(self.s.error_at(place, format!("unknown key {}", quote(name))));
        }
        if depth > 0 {
            return Err(self.s.error_at(place, format!("{name} stands outside encap()")));
        }
        match name {
            "eth" => self.fields(&ETH)?,
            "in_port" => self.in_port()?,
            "packet_type" => self.packet_type(place)?,
            "recirc_id" => {
                let masked = self.single(Field::RecircId, name)?;
                self.draft.set(Field::RecircId, masked);
            }
            // A key of the language that this datapath has not.
            _ => {
                let body = language::read_key_body(&mut self.s, name)?;
                if !(Node { name: name.to_owned(), body }).is_wildcard() {
                    return Err(self.s.error_at(place, format!("{name}: not supported by this datapath")));
                }
            }
        }
        Ok(())
    }

    fn fields(&mut self, attribute: &Attribute) -> Result<(), TextError> {
        for (field, masked) in attribute.parse(&mut self.s)? {
            self.draft.set(field, masked);
        }
        Ok(())
    }

    /// Reads `VALUE[/MASK])` or `)`.
    fn single(&mut self, field: Field, name: &str) -> Result<Masked, TextError> {
        if self.s.eat(")") {
            return Ok(Masked { value: 0, mask: 0 });
        }
        let masked = value::parse(&mut self.s, field, name)?;
        self.s.expect(")")?;
        Ok(masked)
    }

    fn in_port(&mut self) -> Result<(), TextError> {
        let place = self.s.place();
        let text = self.s.body()?;
        let (port, mask) = match text.split_once('/') {
            Some((port, mask)) => (port, integer(mask).ok_or(mask)),
            None => (text, Ok(if text.is_empty() { 0 } else { Field::InPort.full() })),
        };
        let number = match integer(port) {
            _ if text.is_empty() => PortNo::NONE.0.into(),
            Some(number) if number > PortNo::MAX.0.into() => {
                return Err(self.s.error_at(place, format!("in_port: {port} is above {}", PortNo::MAX)));
            }
            Some(number) => number,
            None => match self.ports.number(port) {
                Some(number) => number.0.into(),
                None => return Err(self.s.error_at(place, format!("in_port: no port {}", quote(port)))),
            },
        };
        match mask {
            Ok(mask) if mask <= Field::InPort.full() => {
                self.draft.set(Field::InPort, Masked { value: number & mask, mask });
                Ok(())
            }
            _ => Err(self.s.error_at(place + port.len() + 1, "in_port: the mask is no 32-bit number")),
        }
    }

    /// Only Ethernet frames are switched here, whose packet type is (0,0).
    fn packet_type(&mut self, place: usize) -> Result<(), TextError> {
        let body = self.s.body()?;
        let is_zero = |item: &str| {
            let value = item.strip_prefix("ns=").or_else(|| item.strip_prefix("id="));
            value.map(|v| v.split_once('/').map_or(v, |(v, _)| v)).and_then(integer) == Some(0)
        };
        if items(body).all(is_zero) {
            Ok(())
        } else {
            Err(self.s.error_at(place, "packet_type: only packet_type(ns=0,id=0) is supported by this datapath"))
        }
    }

    /// Works out which tags `level` at `depth` says are there, and so what its `eth_type` is the type of.
    fn settle(&mut self, depth: usize, level: &Level) -> Result<(), TextError> {
        let eth_type = level.eth_type.filter(|(_, t)| t.mask != 0);
        let says_tag = eth_type.is_some_and(|(_, t)| is_tag_type(t));
        let presence = if depth < CFI.len() { self.written_presence(depth, level)? } else { Presence::Absent };
        if presence != Presence::Present {
            if let Some((place, _)) = level.encap {
                return Err(self
                    .s
                    .error_at(place, "encap needs vlan(…) with a tag, or eth_type(0x8100) or eth_type(0x88a8)"));
            }
            if let Some((_, masked)) = eth_type {
                self.draft.set(Field::EthType, masked);
            }
            if presence == Presence::Absent && depth < CFI.len() {
                self.draft.set(CFI[depth], Masked { value: 0, mask: 1 });
            }
            return self.check_needs(level);
        }
        if let Some((place, masked)) = eth_type {
            if masked.mask == TPID[depth].full() && !says_tag {
                let what =
                    "the eth_type beside vlan(…) is the tag's, 0x8100 or 0x88a8; the packet's own stands in encap(…)";
                return Err(self.s.error_at(place, what));
            }
            self.draft.set(TPID[depth], masked);
        }
        self.draft.set(CFI[depth], Masked { value: 1, mask: 1 });
        for (field, masked) in level.vlan.iter().flat_map(|(_, fields)| fields) {
            self.draft.set(*field, *masked);
        }
        if let Some((place, attribute)) = level.following.first() {
            return Err(self.s.error_at(*place, format!("{} of a tagged packet stands in encap(…)", attribute.name)));
        }
        match &level.encap {
            Some((_, inside)) => self.settle(depth + 1, inside),
            None => Ok(()),
        }
    }

    /// The table in the module's documentation.
    fn written_presence(&self, depth: usize, level: &Level) -> Result<Presence, TextError> {
        let eth_type = level.eth_type.map(|(_, t)| t).filter(|t| t.mask != 0);
        let says_tag = eth_type.is_some_and(is_tag_type);
        let Some((place, fields)) = &level.vlan else {
            return Ok(match eth_type {
                _ if says_tag => Presence::Present,
                Some(_) => Presence::Absent,
                None => Presence::Any,
            });
        };
        let cfi = fields.iter().find(|(field, _)| *field == CFI[depth]).map(|(_, masked)| *masked);
        let presence = match cfi {
            Some(Masked { mask: 0, .. }) => Presence::Any,
            Some(Masked { value: 0, .. }) => Presence::Absent,
            Some(_) => Presence::Present,
            None if says_tag || !fields.is_empty() => Presence::Present,
            None => Presence::Any,
        };
        let says_more = |(field, masked): &(Field, Masked)| {
            *field != CFI[depth]
                && match presence {
                    Presence::Present => false,
                    // What is not there is zero: Open vSwitch prints it so.
                    Presence::Absent => masked.value != 0,
                    Presence::Any => masked.mask != 0,
                }
        };
        if fields.iter().any(says_more) {
            return Err(self.s.error_at(*place, "vlan: vid and pcp need a tag, which cfi=1 says"));
        }
        Ok(presence)
    }

    fn check_needs(&self, level: &Level) -> Result<(), TextError> {
        let m = self.draft.finish();
        match level.following.iter().find(|(_, attribute)| !attribute.needs.met(&m)) {
            Some((place, attribute)) => {
                Err(self.s.error_at(*place, format!("{} needs {}", attribute.name, attribute.needs.describe())))
            }
            None => Ok(()),
        }
    }
}

/// Whether `eth_type` is exactly that of a VLAN tag.
fn is_tag_type(eth_type: Masked) -> bool {
    let tags = [eth_type::VLAN, eth_type::QINQ];
    eth_type.mask == Field::EthType.full() && tags.iter().any(|t| u128::from(*t) == eth_type.value)
}

fn items(body: &str) -> impl Iterator<Item = &str> {
    body.split([',', ' ', '\t', '\r', '\n']).filter(|item| !item.is_empty())
}
