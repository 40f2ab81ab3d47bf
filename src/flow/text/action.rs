//! Actions: [`parse()`] and [`format()`].

use std::fmt::Write;

use super::attribute::{ATTRIBUTES, Attribute, ETH, List, VLAN, format_field};
use super::language;
use super::scan::{Scanner, integer, quote};
use super::value::Masked;
use super::{PortNames, TextError, printable_name};
use crate::flow::key::eth_type;
use crate::flow::{Action, Actions, Assign, Header, PortNo, Set};

/// The headers that can be set.
const HEADERS: [Header; 7] =
    [Header::Eth, Header::Vlan, Header::Ipv4, Header::Ipv6, Header::Tcp, Header::Udp, Header::Sctp];

/// Whether `word` begins an action, so that a port of this name goes by its number.
pub fn is_reserved(word: &str) -> bool {
    language::is_action(word)
}

pub fn parse(text: &str, ports: &dyn PortNames) -> Result<Actions, TextError> {
    let mut s = Scanner::new(text);
    let mut list = Vec::new();
    let mut dropped = false;
    let mut first = true;
    loop {
        let before = s.place();
        s.skip_separators();
        if s.is_at_end() {
            return Ok(Actions::new(list));
        }
        let place = s.place();
        if !first && place == before {
            return Err(s.error_at(place, format!("expected \",\", found {}", s.found())));
        }
        match action(&mut s, ports)? {
            None if first => dropped = true,
            Some(action) if !dropped => list.push(action),
            _ => return Err(s.error_at(place, "drop stands alone")),
        }
        first = false;
    }
}

/// Reads one action; `None` is `drop`.
fn action(s: &mut Scanner<'_>, ports: &dyn PortNames) -> Result<Option<Action>, TextError> {
    let place = s.place();
    let word = s.word();
    Ok(Some(match word {
        "drop" => return Ok(None),
        "pop_vlan" => Action::PopVlan,
        "push_vlan" => push_vlan(s, place)?,
        "set" => Action::Set(set(s)?),
        // An action of the language that this datapath has not.
        _ if language::is_action(word) => {
            language::read_action_rest(s, word)?;
            return Err(s.error_at(place, format!("{word}: not supported by this datapath")));
        }
        _ => match integer(word) {
            Some(number) => match u32::try_from(number).map(PortNo) {
                Ok(port) if port != PortNo::NONE && port <= PortNo::MAX => Action::Output(port),
                _ => return Err(s.error_at(place, format!("{word} is no port: they are 1 to {}", PortNo::MAX))),
            },
            None => match ports.number(word) {
                Some(port) => Action::Output(port),
                None if word.is_empty() => {
                    return Err(s.error_at(place, format!("expected an action, found {}", s.found())));
                }
                None => {
                    return Err(s.error_at(place, format!("unknown action {}, and no port of that name", quote(word))));
                }
            },
        },
    }))
}

/// Reads `([tpid=T,]vid=V[,pcp=P][,cfi=C])`.
fn push_vlan(s: &mut Scanner<'_>, start: usize) -> Result<Action, TextError> {
    const NAMES: [(&str, u16); 4] = [("tpid", u16::MAX), ("vid", 0xfff), ("pcp", 7), ("cfi", 1)];
    let mut given: [Option<u16>; 4] = [None; 4];
    s.expect("(")?;
    while !s.at_body_end(given.iter().all(Option::is_none))? {
        let place = s.place();
        let name = s.word();
        let Some(i) = NAMES.iter().position(|(n, _)| *n == name) else {
            return Err(s.error_at(place, format!("push_vlan: no field {}, only tpid, vid, pcp, cfi", quote(name))));
        };
        if given[i].is_some() {
            return Err(s.error_at(place, format!("push_vlan: {name} is given twice")));
        }
        s.expect("=")?;
        let (place, text) = (s.place(), s.word());
        let value = integer(text).and_then(|v| u16::try_from(v).ok()).filter(|v| *v <= NAMES[i].1);
        let allowed = |v: &u16| name != "tpid" || [eth_type::VLAN, eth_type::QINQ].contains(v);
        given[i] = value.filter(allowed);
        if given[i].is_none() {
            let wanted = if name == "tpid" { "0x8100 or 0x88a8".to_owned() } else { format!("0 to {}", NAMES[i].1) };
            return Err(s.error_at(place, format!("push_vlan: {name}: {} is not {wanted}", quote(text))));
        }
    }
    let [tpid, vid, pcp, cfi] = given;
    let Some(vid) = vid else {
        return Err(s.error_at(start, "push_vlan needs vid="));
    };
    let tci = pcp.unwrap_or(0) << 13 | cfi.unwrap_or(1) << 12 | vid;
    Ok(Action::PushVlan { tpid: tpid.unwrap_or(eth_type::VLAN), tci })
}

/// Reads `(NAME(FIELD=VALUE[/MASK],…))`.
fn set(s: &mut Scanner<'_>) -> Result<Set, TextError> {
    s.expect("(")?;
    let place = s.place();
    let name = s.word();
    let Some(header) = HEADERS.into_iter().find(|h| h.name() == name) else {
        let names = HEADERS.map(Header::name).join(", ");
        return Err(s.error_at(place, format!("set({}): not supported by this datapath, only {names}", quote(name))));
    };
    s.expect("(")?;
    let fields = attribute(header).parse(s)?;
    let assigns: Vec<_> = fields
        .into_iter()
        .filter(|(_, masked)| masked.mask != 0)
        .map(|(field, Masked { value, mask })| Assign { field, value, mask })
        .collect();
    let set = Set::new(header, &assigns).map_err(|e| s.error_at(place, e.to_string()))?;
    s.expect(")")?;
    Ok(set)
}

/// How the fields of `header` are called.
fn attribute(header: Header) -> &'static Attribute {
    let row = |name: &str| ATTRIBUTES.iter().find(|a| a.name == name);
    match header {
        Header::Eth => &ETH,
        Header::Vlan => &VLAN[0],
        // A test holds that there is a row for each.
        _ => row(header.name()).unwrap_or(&ETH),
    }
}

pub fn format(actions: &Actions, ports: &dyn PortNames) -> String {
    let mut out = List::default();
    for action in actions.iter() {
        out.item(|out| format_action(out, action, ports));
    }
    if out.is_empty() { "drop".to_owned() } else { out.into_text() }
}

fn format_action(out: &mut String, action: &Action, ports: &dyn PortNames) {
    // Writing to a string cannot fail.
    let _ = match action {
        Action::Output(port) => match printable_name(*port, ports) {
            Some(name) => write!(out, "{name}"),
            None => write!(out, "{port}"),
        },
        Action::PushVlan { tpid, tci } => {
            out.push_str("push_vlan(");
            if *tpid != eth_type::VLAN {
                let _ = write!(out, "tpid={tpid:#06x},");
            }
            let cfi = if tci & 0x1000 == 0 { ",cfi=0" } else { "" };
            write!(out, "vid={},pcp={}{cfi})", tci & 0xfff, tci >> 13)
        }
        Action::PopVlan => write!(out, "pop_vlan"),
        Action::Set(set) => {
            let attribute = attribute(set.header());
            let mut body = List::default();
            for Assign { field, value, mask } in set.assigns() {
                let name = attribute.fields.iter().find(|(_, f)| f == field).map_or(field.name(), |(name, _)| name);
                body.item(|out| format_field(out, name, *field, Masked { value: *value, mask: *mask }));
            }
            out.push_str("set(");
            body.wrap(out, attribute.name);
            write!(out, ")")
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_can_be_set_has_a_name_in_the_syntax() {
        for header in HEADERS {
            let attribute = attribute(header);
            assert_eq!(attribute.name, header.name());
            for field in header.fields() {
                assert!(attribute.fields.iter().any(|(_, f)| f == field), "{header:?} {field:?}");
            }
        }
    }
}
