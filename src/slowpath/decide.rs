//! The story of a decision: a packet's trip through the tables.
//!
//! ```text
//!          ┌────────── resubmit, goto ◄──────┐
//!          ▼                                 │
//!  key ► look up in table ► the rule's actions, one by one ► datapath actions
//!          │                     │                              ▲
//!          ▼                     ▼                              │
//!        bits looked at ◄── rewrites: the key changes, and ─► written out before
//!        (of the packet      what was written counts           the next output
//!         as it came)        as known from then on
//! ```
//!
//! # Whose bits
//!
//! Rules see `Trip::key`, the packet as rewritten so far; a megaflow is matched against the packet as it came.
//! `Sight` tells of each bit of the former whether all packets of the megaflow have the same there: because it was
//! looked at, or because an action wrote it. What a look-up adds to that is carried back to where it came from: a bit
//! to itself, but in the VLAN slots, where tags move (`tags`).
//!
//! # What is always looked at
//!
//! `in_port`, `recirc_id`, `eth_type`, which VLAN slots hold a tag and with which TPID, and of IP the fragment state:
//! they decide how the rest of the key is to be read. Whoever looks at a field of the transport header has looked at the
//! protocol too, and at a neighbour message's fields at its type: without them, the bits would say something else of other packets.
//!
//! # Bounds
//!
//! A trip of more than [`MAX_DEPTH`] nested look-ups, [`MAX_LOOKUPS`] in all, or [`MAX_STEPS`] actions and outputs is
//! given up as a whole: its packets are dropped as [`DropReason::TooDeep`].

use std::sync::Arc;
use std::time::Instant;

use super::classify::Sight;
use super::learn::{Lookup, MacTable, Station};
use super::rules::{Rule, RuleAction, RuleStats};
use super::tags::Tags;
use super::{Decision, DropReason, World};
use crate::flow::field::WORDS;
use crate::flow::key::{eth_type, frag, ip_proto};
use crate::flow::{Action, Actions, Assign, Field, Header, Key, Mask, PortNo, Set};

/// Look-ups that may stand inside each other.
pub const MAX_DEPTH: usize = 64;
/// Look-ups in all.
pub const MAX_LOOKUPS: usize = 4096;
/// Rule actions and outputs in all.
pub const MAX_STEPS: usize = 65_536;

/// The word of a key that holds the VLAN slots.
const VLAN_WORD: usize = 3;

/// One packet on its way.
pub(super) struct Trip<'a> {
    pub(super) world: &'a World,
    pub(super) stations: &'a MacTable,
    pub(super) now: Instant,
    /// Whether the sender's place is to be learned.
    pub(super) learn: bool,
    /// The packet as rewritten so far.
    pub(super) key: Key,
    pub(super) ingress: PortNo,
    /// Of `key`.
    sight: Sight,
    /// Of the packet as it came.
    looked: Mask,
    hint: Mask,
    tags: Tags,
    /// Bits of `key` that were written since the last output, but for the VLAN slots.
    pending: Mask,
    out: Vec<Action>,
    rules: Vec<Arc<RuleStats>>,
    pub(super) lookups: Vec<Lookup>,
    pub(super) learned: Option<Station>,
    table_lookups: usize,
    steps: usize,
    /// An output went to a port that is not there.
    pub(super) no_port: bool,
    /// What it met on its way, where somebody wants to know.
    trace: Option<Vec<Step>>,
}

/// Something that a packet met on its way through the tables.
#[derive(Clone, Debug)]
pub struct Step {
    /// Look-ups that this stands inside of.
    pub depth: usize,
    pub what: Met,
}

#[derive(Clone, Debug)]
pub enum Met {
    /// A table; the rule that matched there.
    Table(u8, Option<Arc<Rule>>),
    /// An action of that rule.
    Action(RuleAction),
}

/// Why a trip ends before its rules do.
pub(super) enum Stop {
    Ttl,
    TooDeep,
}

impl<'a> Trip<'a> {
    /// A packet with this key. Bits of `hint` (of the key as it came) are preferred wherever there is a choice.
    pub fn new(
        world: &'a World,
        stations: &'a MacTable,
        key: &Key,
        hint: &Mask,
        now: Instant,
        learn: bool,
    ) -> Trip<'a> {
        let tags = Tags::of(key.words()[VLAN_WORD]);
        let mut trip = Trip {
            world,
            stations,
            now,
            learn,
            key: *key,
            ingress: key.in_port(),
            sight: Sight { known: Mask::EMPTY, hint: *hint },
            looked: always(key),
            hint: *hint,
            tags,
            pending: Mask::EMPTY,
            out: Vec::new(),
            rules: Vec::new(),
            lookups: Vec::new(),
            learned: None,
            table_lookups: 0,
            steps: 0,
            no_port: false,
            trace: None,
        };
        trip.sight.known = trip.looked;
        trip.retag();
        trip
    }

    /// Goes all the way, and tells of it.
    pub fn run_traced(mut self, epoch: u64) -> (Decision, Vec<Step>) {
        self.trace = Some(Vec::new());
        let decision = self.go(epoch);
        (decision, self.trace.unwrap_or_default())
    }

    /// Goes all the way.
    pub fn run(mut self, epoch: u64) -> Decision {
        self.go(epoch)
    }

    fn go(&mut self, epoch: u64) -> Decision {
        let stop = self.table(0, None, 0).err();
        let dropped = match stop {
            Some(Stop::TooDeep) => Some(DropReason::TooDeep),
            _ if self.out.iter().any(|a| matches!(a, Action::Output(_))) => None,
            Some(Stop::Ttl) => Some(DropReason::Ttl),
            None if self.no_port => Some(DropReason::NoPort),
            None if self.rules.is_empty() => Some(DropReason::NoRule),
            None => Some(DropReason::Rule),
        };
        self.looked.establish(&self.key);
        Decision {
            mask: self.looked,
            actions: if dropped.is_some() { Actions::drop() } else { Actions::new(std::mem::take(&mut self.out)) },
            dropped,
            rules: std::mem::take(&mut self.rules),
            lookups: std::mem::take(&mut self.lookups),
            learned: self.learned,
            epoch,
        }
    }

    /// Looks the packet up in a table, as if it had come from `in_port` if that is given, and follows the rule.
    fn table(&mut self, number: u8, in_port: Option<PortNo>, depth: usize) -> Result<(), Stop> {
        self.table_lookups += 1;
        if depth >= MAX_DEPTH || self.table_lookups > MAX_LOOKUPS {
            return Err(Stop::TooDeep);
        }
        let world = self.world;
        let Some(table) = world.rules.table(number) else { return Ok(()) };
        let before = self.sight.known;
        self.key.set(Field::InPort, in_port.unwrap_or(self.ingress).0);
        let rule = table.lookup(&self.key, &mut self.sight);
        self.key.set(Field::InPort, self.ingress.0);
        self.note_looked(&before);
        self.met(depth, || Met::Table(number, rule.cloned()));
        let Some(rule) = rule else { return Ok(()) };
        self.rules.push(rule.stats.clone());
        rule.spec.actions.iter().try_for_each(|action| self.step(action, number, depth))
    }

    fn step(&mut self, action: &RuleAction, table: u8, depth: usize) -> Result<(), Stop> {
        self.spend()?;
        self.met(depth, || Met::Action(*action));
        match *action {
            RuleAction::Output(port) if port == self.ingress => {}
            RuleAction::Output(port) => self.output(port)?,
            RuleAction::InPort => self.output(self.ingress)?,
            RuleAction::Flood | RuleAction::All => self.flood()?,
            RuleAction::Normal => self.normal()?,
            RuleAction::PushVlan(tpid) => self.with_tags(|tags| tags.push(tpid)),
            RuleAction::PopVlan => self.with_tags(Tags::pop),
            RuleAction::ModVlanVid(vid) => self.write_tag(Field::Vlan0Vid, vid.into()),
            RuleAction::ModVlanPcp(pcp) => self.write_tag(Field::Vlan0Pcp, pcp.into()),
            RuleAction::Set(assign) => self.write(&assign),
            RuleAction::DecTtl => self.dec_ttl()?,
            RuleAction::Resubmit { port, table: to } => self.table(to.unwrap_or(table), port, depth + 1)?,
            RuleAction::Goto(to) => self.table(to, None, depth + 1)?,
        }
        Ok(())
    }

    #[inline]
    fn met(&mut self, depth: usize, what: impl FnOnce() -> Met) {
        if let Some(trace) = &mut self.trace {
            trace.push(Step { depth, what: what() });
        }
    }

    fn spend(&mut self) -> Result<(), Stop> {
        self.steps += 1;
        if self.steps > MAX_STEPS { Err(Stop::TooDeep) } else { Ok(()) }
    }

    /// Sends the packet as it is now.
    pub(super) fn output(&mut self, port: PortNo) -> Result<(), Stop> {
        self.spend()?;
        if !self.world.ports.contains(port) {
            self.no_port = true;
            return Ok(());
        }
        self.commit();
        self.out.push(Action::Output(port));
        Ok(())
    }

    /// Sends to every port but the ingress, in ascending order.
    pub(super) fn flood(&mut self) -> Result<(), Stop> {
        let (world, ingress) = (self.world, self.ingress);
        let mut others = world.ports.numbers().filter(|p| *p != ingress).peekable();
        self.no_port |= others.peek().is_none();
        for port in others {
            self.output(port)?;
        }
        Ok(())
    }

    /// The value of a field, all of which counts as looked at.
    pub(super) fn look(&mut self, field: Field) -> u128 {
        let before = self.sight.known;
        self.sight.known.add_field(field);
        self.note_looked(&before);
        self.key.get(field)
    }

    /// Carries what became known since `before` back to the packet as it came.
    fn note_looked(&mut self, before: &Mask) {
        let news: [u64; WORDS] = std::array::from_fn(|i| self.sight.known.words()[i] & !before.words()[i]);
        for (i, (looked, new)) in self.looked.words_mut().iter_mut().zip(news).enumerate() {
            *looked |= if i == VLAN_WORD { self.tags.origin(new) } else { new };
        }
    }

    fn with_tags(&mut self, change: impl FnOnce(&mut Tags)) {
        change(&mut self.tags);
        self.retag();
    }

    /// Shows the tags in the key.
    fn retag(&mut self) {
        self.key.words_mut()[VLAN_WORD] = self.tags.word();
        self.sight.known.words_mut()[VLAN_WORD] = self.tags.seen(self.looked.words()[VLAN_WORD]);
        self.sight.hint.words_mut()[VLAN_WORD] = self.tags.seen(self.hint.words()[VLAN_WORD]);
    }

    /// Writes a field of the outermost tag, and adds one if there is none.
    fn write_tag(&mut self, field: Field, value: u128) {
        self.with_tags(|tags| {
            if tags.is_empty() {
                tags.push(eth_type::VLAN);
            }
            tags.write(field, value, field.full());
        });
    }

    /// Writes a field; nothing where the packet has none such (a tag that another rule took, ports of a later fragment).
    fn write(&mut self, assign: &Assign) {
        let Assign { field, value, mask } = *assign;
        match field {
            Field::Vlan0Vid | Field::Vlan0Pcp => self.with_tags(|tags| tags.write(field, value, mask)),
            Field::TpSrc | Field::TpDst if self.key.get(Field::IpFrag) == u128::from(frag::LATER) => {}
            _ => {
                self.key.set(field, self.key.get(field) & !mask | value & mask);
                self.sight.known.add(field, mask);
                self.pending.add(field, mask);
            }
        }
    }

    fn dec_ttl(&mut self) -> Result<(), Stop> {
        match self.look(Field::IpTtl) {
            0 | 1 => Err(Stop::Ttl),
            ttl => {
                self.write(&Assign::full(Field::IpTtl, ttl - 1));
                Ok(())
            }
        }
    }

    /// Gives out what was rewritten since the last output.
    fn commit(&mut self) {
        let network = match self.key.eth_type() {
            eth_type::IPV4 => Some(Header::Ipv4),
            eth_type::IPV6 => Some(Header::Ipv6),
            _ => None,
        };
        let transport = match self.key.ip_proto() {
            ip_proto::TCP => Some(Header::Tcp),
            ip_proto::UDP => Some(Header::Udp),
            ip_proto::SCTP => Some(Header::Sctp),
            _ => None,
        };
        self.commit_header(Header::Eth);
        self.tags.commit(&mut self.out);
        if self.pending != Mask::EMPTY {
            for header in [network, network.and(transport)].into_iter().flatten() {
                self.commit_header(header);
            }
            self.pending = Mask::EMPTY;
        }
    }

    fn commit_header(&mut self, header: Header) {
        let assign = |&field: &Field| {
            let mask = self.pending.get(field);
            (mask != 0).then(|| Assign { field, value: self.key.get(field) & mask, mask })
        };
        let assigns: smallvec::SmallVec<[Assign; 5]> = header.fields().iter().filter_map(assign).collect();
        // Refused when there is nothing to set.
        self.out.extend(Set::new(header, &assigns).ok().map(Action::Set));
    }
}

/// The bits that every decision looks at.
fn always(key: &Key) -> Mask {
    let mut mask = Mask::EMPTY;
    for field in [Field::InPort, Field::RecircId, Field::EthType, Field::Vlan0Cfi] {
        mask.add_field(field);
    }
    if key.has_vlan() {
        mask.add_field(Field::Vlan0Tpid);
        mask.add_field(Field::Vlan1Cfi);
        if key.get(Field::Vlan1Cfi) != 0 {
            mask.add_field(Field::Vlan1Tpid);
        }
    }
    if matches!(key.eth_type(), eth_type::IPV4 | eth_type::IPV6) {
        mask.add_field(Field::IpFrag);
    }
    mask
}
