//! The words of actions, both ways.

use std::fmt::Write as _;

use super::matching::{Form, Requires, tos};
use super::scan::{Fail, Piece, is_separator, port_name};
use crate::flow::key::eth_type;
use crate::flow::text::PortNames;
use crate::flow::{Assign, Field, Match, PortNo};
use crate::slowpath::rules::{MAX_TABLE, RuleAction};

/// A field that can be written: its name in `set_field`, and in `mod_…:` if it has one of those.
type Settable = (&'static str, Option<&'static str>, Field, Form, Requires);

const PORT: Form = Form::Masked(0xffff);

/// Every name that `set_field` takes. Printing takes the first whose field, width and requirement fit.
static SETTABLE: [Settable; 26] = {
    use Field::*;
    use Requires::*;
    [
        ("eth_src", Some("mod_dl_src"), EthSrc, Form::Mac, Nothing),
        ("dl_src", None, EthSrc, Form::Mac, Nothing),
        ("eth_dst", Some("mod_dl_dst"), EthDst, Form::Mac, Nothing),
        ("dl_dst", None, EthDst, Form::Mac, Nothing),
        ("vlan_vid", None, Vlan0Vid, Form::Masked(0xfff), Vlan),
        ("vlan_pcp", None, Vlan0Pcp, Form::Masked(7), Vlan),
        ("ip_src", Some("mod_nw_src"), Ipv4Src, Form::Ipv4, Ipv4),
        ("nw_src", None, Ipv4Src, Form::Ipv4, Ipv4),
        ("ip_dst", Some("mod_nw_dst"), Ipv4Dst, Form::Ipv4, Ipv4),
        ("nw_dst", None, Ipv4Dst, Form::Ipv4, Ipv4),
        ("ip_dscp", None, IpTos, Form::Part(63, 2), Ip),
        ("nw_tos", Some("mod_nw_tos"), IpTos, Form::Part(63, 2), Ip),
        ("nw_ecn", Some("mod_nw_ecn"), IpTos, Form::Part(3, 0), Ip),
        ("ip_ecn", None, IpTos, Form::Part(3, 0), Ip),
        ("nw_ttl", Some("mod_nw_ttl"), IpTtl, Form::Masked(255), Ip),
        ("ipv6_src", None, Ipv6Src, Form::Ipv6, Ipv6),
        ("ipv6_dst", None, Ipv6Dst, Form::Ipv6, Ipv6),
        ("ipv6_label", None, Ipv6Label, Form::Masked(0xf_ffff), Ipv6),
        ("tcp_src", None, TpSrc, PORT, Tcp),
        ("udp_src", None, TpSrc, PORT, Udp),
        ("sctp_src", None, TpSrc, PORT, Sctp),
        ("tp_src", Some("mod_tp_src"), TpSrc, PORT, Transport),
        ("tcp_dst", None, TpDst, PORT, Tcp),
        ("udp_dst", None, TpDst, PORT, Udp),
        ("sctp_dst", None, TpDst, PORT, Sctp),
        ("tp_dst", Some("mod_tp_dst"), TpDst, PORT, Transport),
    ]
};

/// Reads a list of actions of a rule in `table` with this match.
pub(super) fn parse(
    mut rest: Piece,
    table: u8,
    matching: &Match,
    ports: &dyn PortNames,
) -> Result<Vec<RuleAction>, Fail> {
    let mut reader = Reader { matching, ports, table, tagged: Requires::Vlan.holds(matching) };
    let mut actions = Vec::new();
    let mut last: Option<Piece> = None;
    loop {
        rest.trim_start(is_separator);
        if rest.text.is_empty() {
            break;
        }
        let word = rest.take(length(rest.text));
        if let Some(only) = last {
            return Err(word.fail(format!("nothing can follow {}", only.text)));
        }
        if word.text == "drop" {
            if !actions.is_empty() {
                return Err(word.fail("drop must stand alone".into()));
            }
            last = Some(word);
            continue;
        }
        let action = reader.action(word)?;
        if matches!(action, RuleAction::Goto(_)) {
            last = Some(word);
        }
        actions.push(action);
    }
    if actions.is_empty() && last.is_none() {
        return Err(rest.fail("actions= names none; actions=drop drops".into()));
    }
    Ok(actions)
}

/// The bytes of the first word: up to a separator outside of parentheses.
fn length(text: &str) -> usize {
    let mut depth = 0usize;
    let end = text.find(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && is_separator(c)
    });
    end.unwrap_or(text.len())
}

struct Reader<'a> {
    matching: &'a Match,
    ports: &'a dyn PortNames,
    table: u8,
    /// Whether the packet has a VLAN tag at this point for sure.
    tagged: bool,
}

impl Reader<'_> {
    fn action(&mut self, word: Piece) -> Result<RuleAction, Fail> {
        let (name, value) = match word.text.find([':', '(']) {
            Some(at) if word.text[at..].starts_with('(') => {
                let mut value = word;
                let name = value.take(at);
                let inside = value.text.strip_prefix('(').and_then(|t| t.strip_suffix(')'));
                let inside = inside.ok_or_else(|| value.refuse("closed by a parenthesis"))?;
                (name, Piece { text: inside, at: value.at + 1 })
            }
            Some(_) => word.split(":").unwrap_or((word, word)),
            None => (word, Piece { text: "", at: word.at + word.text.len() }),
        };
        let plain = |action: RuleAction| {
            if name.text.len() == word.text.len() {
                Ok(action)
            } else {
                Err(value.fail(format!("{} takes no value", name.text)))
            }
        };
        match name.text.to_ascii_lowercase().as_str() {
            "normal" => plain(RuleAction::Normal),
            "in_port" => plain(RuleAction::InPort),
            "flood" => plain(RuleAction::Flood),
            "all" => plain(RuleAction::All),
            "output" => Ok(RuleAction::Output(value.port(self.ports)?)),
            "dec_ttl" => {
                self.require(&name, Requires::Ip)?;
                plain(RuleAction::DecTtl)
            }
            "strip_vlan" | "pop_vlan" => {
                self.tagged = false;
                plain(RuleAction::PopVlan)
            }
            "push_vlan" => match value.number(0xffff) {
                Ok(tpid) if [eth_type::VLAN, eth_type::QINQ].contains(&(tpid as u16)) => {
                    self.tagged = true;
                    Ok(RuleAction::PushVlan(tpid as u16))
                }
                _ => Err(value.refuse("0x8100 or 0x88a8")),
            },
            "mod_vlan_vid" | "set_vlan_vid" => {
                self.tagged = true;
                Ok(RuleAction::ModVlanVid(value.number(0xfff)? as u16))
            }
            "mod_vlan_pcp" | "set_vlan_pcp" => {
                self.tagged = true;
                Ok(RuleAction::ModVlanPcp(value.number(7)? as u8))
            }
            "resubmit" => self.resubmit(value),
            "goto_table" => match value.number(MAX_TABLE.into()) {
                Ok(to) if to > self.table.into() => Ok(RuleAction::Goto(to as u8)),
                _ => Err(value
                    .refuse(&format!("a table after the rule's own, {} to {MAX_TABLE}", u16::from(self.table) + 1))),
            },
            "set_field" => self.set_field(name, value),
            modifier if modifier.starts_with("mod_") => {
                let Some(known) = SETTABLE.iter().find(|(_, m, ..)| *m == Some(modifier)) else {
                    return Err(unknown(&word));
                };
                self.set(name, value, known)
            }
            _ => match word.port(self.ports) {
                Ok(port) => Ok(RuleAction::Output(port)),
                Err(_) if word.text.bytes().all(|b| b.is_ascii_digit()) => {
                    Err(word.refuse("a port's number from 1 to 65535"))
                }
                Err(_) => Err(unknown(&word)),
            },
        }
    }

    /// `PORT`, `PORT,TABLE` or `,TABLE`.
    fn resubmit(&self, value: Piece) -> Result<RuleAction, Fail> {
        let (port, table) = value.split(",").unwrap_or((value, Piece { text: "", ..value }));
        let port = match port.text {
            "" | "in_port" => None,
            _ => Some(port.port(self.ports)?),
        };
        let to = (!table.text.is_empty()).then(|| table.number(MAX_TABLE.into())).transpose()?;
        if value.text.is_empty() {
            return Err(value.fail("resubmit needs a port, a table or both, like resubmit(,1)".into()));
        }
        Ok(RuleAction::Resubmit { port, table: to.map(|t| t as u8) })
    }

    fn set_field(&self, name: Piece, value: Piece) -> Result<RuleAction, Fail> {
        let Some((value, field)) = value.split("->") else {
            return Err(value.fail("set_field takes VALUE[/MASK]->FIELD".into()));
        };
        let Some(known) = SETTABLE.iter().find(|(n, ..)| *n == field.text) else {
            let names: Vec<_> = SETTABLE.iter().map(|(n, ..)| *n).collect();
            return Err(field.refuse(&format!("a field that can be set ({})", names.join(", "))));
        };
        self.set(name, value, known)
    }

    fn set(&self, name: Piece, value: Piece, settable: &Settable) -> Result<RuleAction, Fail> {
        let (word, _, field, form, requires) = *settable;
        // The tag that the match names may have been taken off since, or another put on.
        let holds = if requires == Requires::Vlan { self.tagged } else { requires.holds(self.matching) };
        if !holds {
            return Err(name.fail(format!("setting {word} needs {}", requires.words())));
        }
        let (bits, mask) = match word {
            "nw_tos" => (tos(&value)?, 0xfc),
            // Bit 12 says "a tag is there", as in OpenFlow; it may be written or not.
            "vlan_vid" if value.masked().1.is_none() => (u128::from(value.number(0x1fff)? & 0xfff), field.full()),
            _ => form.parse(field, &value)?,
        };
        Ok(RuleAction::Set(Assign { field, value: bits & mask, mask }))
    }

    fn require(&self, name: &Piece, requires: Requires) -> Result<(), Fail> {
        if requires.holds(self.matching) {
            return Ok(());
        }
        Err(name.fail(format!("{} needs {}", name.text, requires.words())))
    }
}

fn unknown(word: &Piece) -> Fail {
    word.refuse("an action, like output:2, normal, drop or set_field:VALUE->FIELD (see offload-flow(7))")
}

/// Appends `actions=…`.
pub(super) fn format(actions: &[RuleAction], ports: &dyn PortNames, out: &mut String) {
    out.push_str("actions=");
    if actions.is_empty() {
        out.push_str("drop");
    }
    for (i, action) in actions.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        one(action, ports, out);
    }
}

fn one(action: &RuleAction, ports: &dyn PortNames, out: &mut String) {
    let port = |p: PortNo| port_name(p, ports);
    // Writing to a string does not fail.
    let _ = match *action {
        RuleAction::Output(p) => write!(out, "output:{}", port(p)),
        RuleAction::InPort => write!(out, "IN_PORT"),
        RuleAction::Flood => write!(out, "FLOOD"),
        RuleAction::All => write!(out, "ALL"),
        RuleAction::Normal => write!(out, "NORMAL"),
        RuleAction::PushVlan(tpid) => write!(out, "push_vlan:{tpid:#06x}"),
        RuleAction::PopVlan => write!(out, "pop_vlan"),
        RuleAction::ModVlanVid(vid) => write!(out, "mod_vlan_vid:{vid}"),
        RuleAction::ModVlanPcp(pcp) => write!(out, "mod_vlan_pcp:{pcp}"),
        RuleAction::Set(assign) => set(&assign, out),
        RuleAction::DecTtl => write!(out, "dec_ttl"),
        RuleAction::Resubmit { port: p, table } => {
            let table = table.map_or(String::new(), |t| t.to_string());
            match p {
                // Its own table, from its own port: written as the port, so that something stands there.
                None if table.is_empty() => write!(out, "resubmit(in_port)"),
                None => write!(out, "resubmit(,{table})"),
                Some(p) => write!(out, "resubmit({},{table})", port(p)),
            }
        }
        RuleAction::Goto(table) => write!(out, "goto_table:{table}"),
    };
}

fn set(assign: &Assign, out: &mut String) -> std::fmt::Result {
    let Assign { field, value, mask } = *assign;
    let fits = |(.., f, form, _): &&Settable| {
        let is_part = match form {
            Form::Part(max, shift) => mask == u128::from(*max) << shift,
            _ => true,
        };
        *f == field && is_part
    };
    // Ports are called tp_src and tp_dst, which any transport has.
    let known = match field {
        Field::TpSrc | Field::TpDst => SETTABLE.iter().rev().find(fits),
        _ => SETTABLE.iter().find(fits),
    };
    match known {
        Some((name, _, _, form, _)) => write!(out, "set_field:{}->{name}", form.format(field, value, mask)),
        None => write!(out, "set_field:{value:#x}/{mask:#x}->{}", field.name()),
    }
}
