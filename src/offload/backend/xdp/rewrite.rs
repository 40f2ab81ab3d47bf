//! [`Rewrite`]: a list of actions as one step, which is all that the program does to a packet.
//!
//! Several rewrites of a word become one, a tag that is pushed and rewritten is pushed as it ends, and one that is pushed and popped
//! never was. What cannot be one step names the action that is in the way.

use super::layout::RULE;
use crate::flow::action::{Assign, Header, Set};
use crate::flow::{Action, Actions, Field, PortNo};
use crate::offload::backend::Unsupported;

/// Bits of `rule.does`.
pub mod does {
    pub const FULL: u32 = 1 << 0;
    pub const DROP: u32 = 1 << 1;
    pub const PUSH: u32 = 1 << 2;
    pub const POP: u32 = 1 << 3;
    pub const VLAN: u32 = 1 << 4;
    pub const ETH: u32 = 1 << 5;
    pub const IPV4: u32 = 1 << 6;
    pub const IPV6: u32 = 1 << 7;
    pub const TCP: u32 = 1 << 8;
    pub const UDP: u32 = 1 << 9;
    pub const ADDRESSES: u32 = 1 << 10;
}

/// Bytes of a header, each with which of its bits are replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Edit<const N: usize> {
    value: [u8; N],
    mask: [u8; N],
}

impl<const N: usize> Edit<N> {
    const NONE: Edit<N> = Edit { value: [0; N], mask: [0; N] };

    /// Assigns to the bits from `shift` up of the number that the `len` bytes from `at` are.
    fn assign(&mut self, at: usize, len: usize, shift: u32, assign: &Assign) {
        let value = (assign.value << shift).to_be_bytes();
        let mask = (assign.mask << shift).to_be_bytes();
        for i in 0..len {
            let (value, mask) = (value[16 - len + i], mask[16 - len + i]);
            self.value[at + i] = self.value[at + i] & !mask | value;
            self.mask[at + i] |= mask;
        }
    }

    /// `struct edit`s, one a 32-bit word.
    fn words(&self) -> impl Iterator<Item = u32> + '_ {
        let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        (0..N / 4).flat_map(move |i| [word(&self.value[4 * i..]), word(&self.mask[4 * i..])])
    }
}

/// What the program does with the packets of a rule that it handles wholly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewrite {
    does: u32,
    /// `None`: drop.
    pub output: Option<PortNo>,
    tag: Edit<4>,
    tp: Edit<4>,
    eth: Edit<12>,
    net: Edit<40>,
}

impl Rewrite {
    /// Leaves the packet to the poller, marked.
    pub const MARK: Rewrite =
        Rewrite { does: 0, output: None, tag: Edit::NONE, tp: Edit::NONE, eth: Edit::NONE, net: Edit::NONE };

    /// What `actions` do, in one step.
    ///
    /// # Errors
    /// Names the action that the program cannot do, or not behind those before it.
    pub fn of(actions: &Actions) -> Result<Rewrite, Unsupported> {
        let mut rewrite = Rewrite { does: does::FULL, ..Rewrite::MARK };
        if actions.is_drop() {
            rewrite.does |= does::DROP;
            return Ok(rewrite);
        }
        for action in actions.iter() {
            match action {
                Action::Output(_) if rewrite.output.is_some() => return Err(Unsupported::Outputs),
                Action::Output(port) => rewrite.output = Some(*port),
                // Nobody sees what comes behind the last output, and an output behind it is refused above.
                _ if rewrite.output.is_some() => {}
                Action::PushVlan { tpid, tci } => rewrite.push(*tpid, *tci)?,
                Action::PopVlan => rewrite.pop()?,
                Action::Set(set) => rewrite.set(set)?,
            }
        }
        Ok(rewrite)
    }

    fn push(&mut self, tpid: u16, tci: u16) -> Result<(), Unsupported> {
        // The whole of the tag that was there.
        let replaces = self.does & does::POP != 0;
        if self.does & (does::PUSH | does::VLAN) != 0 {
            return Err(Unsupported::Action("push_vlan"));
        }
        self.does = if replaces { self.does & !does::POP | does::VLAN } else { self.does | does::PUSH };
        let ([a, b], [c, d]) = (tpid.to_be_bytes(), (tci & 0xefff).to_be_bytes());
        self.tag = Edit { value: [a, b, c, d], mask: [0xff; 4] };
        Ok(())
    }

    fn pop(&mut self) -> Result<(), Unsupported> {
        match self.does & (does::PUSH | does::POP) {
            does::POP => return Err(Unsupported::Action("pop_vlan")),
            does::PUSH => self.does &= !does::PUSH,
            // With the tag goes what was made of it.
            _ => self.does = self.does & !does::VLAN | does::POP,
        }
        self.tag = Edit::NONE;
        Ok(())
    }

    fn set(&mut self, set: &Set) -> Result<(), Unsupported> {
        let header = set.header();
        let refused = Err(Unsupported::Action(match header {
            Header::Vlan => "set(vlan)",
            Header::Ipv4 => "set(ipv4)",
            Header::Ipv6 => "set(ipv6)",
            Header::Tcp => "set(tcp)",
            Header::Udp => "set(udp)",
            Header::Sctp => "set(sctp)",
            Header::Eth => "set(eth)",
        }));
        let other = match header {
            // The tag behind the one that was popped.
            Header::Vlan => does::POP,
            Header::Ipv4 => does::IPV6,
            Header::Ipv6 => does::IPV4,
            Header::Tcp => does::UDP,
            Header::Udp => does::TCP,
            Header::Eth => 0,
            Header::Sctp => return refused,
        };
        if self.does & other != 0 {
            return refused;
        }
        self.does |= match header {
            Header::Eth => does::ETH,
            Header::Vlan if self.does & does::PUSH != 0 => 0,
            Header::Vlan => does::VLAN,
            Header::Ipv4 => does::IPV4,
            Header::Ipv6 => does::IPV6,
            Header::Tcp => does::TCP,
            Header::Udp | Header::Sctp => does::UDP,
        };
        for assign in set.assigns() {
            match (header, assign.field) {
                (Header::Eth, Field::EthDst) => self.eth.assign(0, 6, 0, assign),
                (Header::Eth, _) => self.eth.assign(6, 6, 0, assign),
                (Header::Vlan, Field::Vlan0Pcp) => self.tag.assign(2, 2, 13, assign),
                (Header::Vlan, _) => self.tag.assign(2, 2, 0, assign),
                (Header::Ipv4, Field::IpTos) => self.net.assign(1, 1, 0, assign),
                (Header::Ipv4, Field::IpTtl) => self.net.assign(8, 1, 0, assign),
                (Header::Ipv4, Field::Ipv4Src) => self.address(12, 4, assign),
                (Header::Ipv4, _) => self.address(16, 4, assign),
                (Header::Ipv6, Field::IpTos) => self.net.assign(0, 4, 20, assign),
                (Header::Ipv6, Field::Ipv6Label) => self.net.assign(0, 4, 0, assign),
                (Header::Ipv6, Field::IpTtl) => self.net.assign(7, 1, 0, assign),
                (Header::Ipv6, Field::Ipv6Src) => self.address(8, 16, assign),
                (Header::Ipv6, _) => self.address(24, 16, assign),
                (_, Field::TpSrc) => self.tp.assign(0, 2, 0, assign),
                (_, _) => self.tp.assign(2, 2, 0, assign),
            }
        }
        Ok(())
    }

    fn address(&mut self, at: usize, len: usize, assign: &Assign) {
        self.does |= does::ADDRESSES;
        self.net.assign(at, len, 0, assign);
    }

    /// `struct rule`. `slot`: of its counts; `out`: of the port.
    pub fn rule(&self, slot: u32, mark: u32, out: u32) -> [u8; RULE] {
        let mut bytes = [0; RULE];
        let head = [slot, mark, self.does, out].into_iter().chain(self.tag.words());
        let words = head.chain(self.tp.words()).chain(self.eth.words()).chain(self.net.words());
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_ne_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Actions {
        crate::flow::text::parse_actions(text, &()).unwrap()
    }

    #[test]
    fn a_tag_that_is_pushed_and_popped_never_was() {
        assert_eq!(Rewrite::of(&list("push_vlan(vid=5,pcp=0),pop_vlan,2")), Rewrite::of(&list("2")));
    }
}
