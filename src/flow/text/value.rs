//! `VALUE[/MASK]` of a field, in the field's [`Notation`].

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::TextError;
use super::scan::{Scanner, integer, quote};
use crate::flow::Field;
use crate::flow::field::Notation;
use crate::flow::key::frag;

/// Names of TCP flag bits, from bit 0.
const TCP_FLAGS: [&str; 12] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];

const FRAGS: [(&str, u8); 3] = [("no", frag::NO), ("first", frag::FIRST), ("later", frag::LATER)];

/// A value and which of its bits count; `value` holds no bit that `mask` does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Masked {
    pub value: u128,
    pub mask: u128,
}

impl Masked {
    /// The bits of `field` in a match's words.
    pub fn of(m: &crate::flow::Match, field: Field) -> Masked {
        Masked { value: m.key().get(field), mask: narrow(field, m.mask().get(field)) }
    }
}

/// The bits of `field` that can be other than zero. Some fields are wider in a key than in a packet.
pub fn significant(field: Field) -> u128 {
    match field {
        Field::IcmpType | Field::IcmpCode | Field::Icmp6Type | Field::Icmp6Code => 0xff,
        Field::TcpFlags => 0xfff,
        _ => field.full(),
    }
}

/// `mask` of a key's field with the bits left out that a text cannot say.
pub fn narrow(field: Field, mask: u128) -> u128 {
    mask & significant(field)
}

/// The mask that a key holds for `mask` of a text: when all significant bits count, all bits do.
pub fn widen(field: Field, mask: u128) -> u128 {
    if mask == significant(field) { field.full() } else { mask }
}

/// Reads `VALUE[/MASK]` of `field`; `name` is for messages.
pub fn parse(s: &mut Scanner<'_>, field: Field, name: impl fmt::Display) -> Result<Masked, TextError> {
    let place = s.place();
    let text = s.word();
    let bad = |s: &Scanner<'_>, why: String| s.error_at(place, format!("{name}: {why}"));
    let notation = field.def().notation;
    if notation == Notation::FlagNames && text.starts_with(['+', '-']) {
        return signed_flags(text).ok_or_else(|| bad(s, format!("{} is no flag list like +syn-ack", quote(text))));
    }
    let value =
        value(notation, text).ok_or_else(|| bad(s, format!("{} is not {}", quote(text), describe(notation))))?;
    if value > significant(field) {
        return Err(bad(s, format!("{text} is above {}", significant(field))));
    }
    if notation == Notation::Frag && value > u128::from(frag::LATER) {
        return Err(bad(s, format!("{text} is not no, first or later")));
    }
    let place = s.place();
    let mask = if s.eat("/") {
        let text = s.word();
        let mask = mask(notation, field, text).ok_or_else(|| {
            s.error_at(place + 1, format!("{name}: {} is no mask of {}", quote(text), describe(notation)))
        })?;
        if mask > significant(field) {
            return Err(s.error_at(place + 1, format!("{name}: mask {text} is above {:#x}", significant(field))));
        }
        mask
    } else {
        significant(field)
    };
    Ok(Masked { value: value & mask, mask })
}

/// Prints `VALUE`, or `VALUE/MASK` where not all bits count.
pub fn format(out: &mut String, field: Field, Masked { value, mask }: Masked) {
    let notation = field.def().notation;
    let exact = mask == significant(field);
    if notation == Notation::FlagNames && !exact && mask != 0 {
        for (bit, name) in TCP_FLAGS.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1) {
            out.push(if value >> bit & 1 == 1 { '+' } else { '-' });
            out.push_str(name);
        }
        return;
    }
    match notation {
        Notation::FlagNames if exact && value != 0 => {
            let names = TCP_FLAGS.iter().enumerate().filter(|(bit, _)| value >> bit & 1 == 1);
            for (i, (_, name)) in names.enumerate() {
                out.push_str(if i == 0 { "" } else { "|" });
                out.push_str(name);
            }
        }
        Notation::Frag if exact => match FRAGS.iter().find(|(_, v)| u128::from(*v) == value) {
            Some((name, _)) => out.push_str(name),
            None => hex(out, value),
        },
        Notation::Decimal => {
            let _ = write!(out, "{value}");
        }
        Notation::Hex | Notation::Frag | Notation::FlagNames => hex(out, value),
        Notation::Mac | Notation::Ipv4 | Notation::Ipv6 => address(out, notation, value),
    }
    if exact {
        return;
    }
    out.push('/');
    match notation {
        Notation::Mac | Notation::Ipv4 | Notation::Ipv6 => address(out, notation, mask),
        _ => hex(out, mask),
    }
}

/// Hexadecimal as C's `%#x`: no prefix before 0.
fn hex(out: &mut String, value: u128) {
    let _ = if value == 0 { write!(out, "0") } else { write!(out, "{value:#x}") };
}

fn address(out: &mut String, notation: Notation, value: u128) {
    let _ = match notation {
        Notation::Mac => {
            let b = value.to_be_bytes();
            write!(out, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[10], b[11], b[12], b[13], b[14], b[15])
        }
        Notation::Ipv4 => write!(out, "{}", Ipv4Addr::from(value as u32)),
        _ => write!(out, "{}", Ipv6Addr::from(value)),
    };
}

fn value(notation: Notation, text: &str) -> Option<u128> {
    match notation {
        Notation::Decimal | Notation::Hex => integer(text),
        Notation::Mac => mac(text),
        Notation::Ipv4 => text.parse::<Ipv4Addr>().ok().map(|a| u128::from(a.to_bits())),
        Notation::Ipv6 => text.parse::<Ipv6Addr>().ok().map(|a| a.to_bits()),
        Notation::Frag => {
            FRAGS.iter().find(|(name, _)| *name == text).map(|(_, v)| u128::from(*v)).or_else(|| integer(text))
        }
        Notation::FlagNames => {
            integer(text).or_else(|| text.split('|').try_fold(0, |flags, name| Some(flags | flag(name)?)))
        }
    }
}

fn mask(notation: Notation, field: Field, text: &str) -> Option<u128> {
    match notation {
        Notation::Ipv4 | Notation::Ipv6 => value(notation, text).or_else(|| {
            let bits = field.bits();
            let length: u8 = text.parse().ok().filter(|length| *length <= bits)?;
            Some(field.full() & !field.full().checked_shr(length.into()).unwrap_or(0))
        }),
        Notation::Mac => mac(text),
        _ => integer(text),
    }
}

fn mac(text: &str) -> Option<u128> {
    let mut parts = text.split(':');
    let value = parts.by_ref().take(6).try_fold((0u128, 0), |(value, n), part| {
        let digits = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
        let byte = if digits { u8::from_str_radix(part, 16).ok()? } else { return None };
        Some((value << 8 | u128::from(byte), n + 1))
    });
    value.filter(|(_, n)| *n == 6 && parts.next().is_none()).map(|(value, _)| value)
}

fn flag(name: &str) -> Option<u128> {
    TCP_FLAGS.iter().position(|n| *n == name).map(|bit| 1 << bit)
}

/// `+syn-ack`: these bits count, the ones behind a plus are 1.
fn signed_flags(text: &str) -> Option<Masked> {
    let mut result = Masked { value: 0, mask: 0 };
    let mut rest = text;
    while let Some(sign) = rest.chars().next() {
        let name = rest.strip_prefix(['+', '-'])?;
        let end = name.find(['+', '-']).unwrap_or(name.len());
        let bit = flag(&name[..end])?;
        if result.mask & bit != 0 {
            return None;
        }
        result.mask |= bit;
        result.value |= if sign == '+' { bit } else { 0 };
        rest = &name[end..];
    }
    Some(result)
}

fn describe(notation: Notation) -> &'static str {
    match notation {
        Notation::Decimal | Notation::Hex => "a number",
        Notation::Mac => "an Ethernet address like 00:11:22:33:44:55",
        Notation::Ipv4 => "an IPv4 address",
        Notation::Ipv6 => "an IPv6 address",
        Notation::Frag => "no, first or later",
        Notation::FlagNames => "TCP flags like syn|ack or +syn-ack",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(field: Field, text: &str) -> Result<Masked, String> {
        parse(&mut Scanner::new(text), field, "x").map_err(|e| e.to_string())
    }

    #[test]
    fn a_prefix_length_is_a_mask() {
        let eight = read(Field::Ipv4Src, "10.0.0.0/255.0.0.0");
        assert_eq!(read(Field::Ipv4Src, "10.0.0.0/8"), eight);
        assert_eq!(read(Field::Ipv4Src, "10.0.0.0/0").map(|m| m.mask), Ok(0));
        assert_eq!(read(Field::Ipv6Src, "::/128").map(|m| m.mask), Ok(u128::MAX));
        assert!(read(Field::Ipv4Src, "10.0.0.0/33").is_err());
    }

    #[test]
    fn a_value_or_mask_that_does_not_fit_is_refused_where_it_stands() {
        assert_eq!(read(Field::IpTtl, "256"), Err("x: 256 is above 255 at column 1".to_owned()));
        assert_eq!(read(Field::IpTtl, "1/256"), Err("x: mask 256 is above 0xff at column 3".to_owned()));
        assert_eq!(read(Field::IcmpType, "256"), Err("x: 256 is above 255 at column 1".to_owned()));
        assert_eq!(read(Field::IpTtl, "-1"), Err("x: \"-1\" is not a number at column 1".to_owned()));
    }

    #[test]
    fn tcp_flags_are_names_signs_or_numbers() {
        assert_eq!(read(Field::TcpFlags, "syn|ack"), Ok(Masked { value: 0x12, mask: 0xfff }));
        assert_eq!(read(Field::TcpFlags, "+syn-ack"), Ok(Masked { value: 2, mask: 0x12 }));
        assert_eq!(read(Field::TcpFlags, "0x12/0x13"), Ok(Masked { value: 0x12, mask: 0x13 }));
        for bad in ["+syn+syn", "+", "syn|", "+syn-bogus", "0x1000"] {
            assert!(read(Field::TcpFlags, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ethernet_addresses_have_six_bytes() {
        assert_eq!(read(Field::EthSrc, "1:2:3:4:5:ff").map(|m| m.value), Ok(0x0102_0304_05ff));
        for bad in ["1:2:3:4:5", "1:2:3:4:5:6:7", "1:2:3:4:5:", "1:2:3:4:5:+6", "001:2:3:4:5:6", ""] {
            assert!(read(Field::EthSrc, bad).is_err(), "{bad}");
        }
    }
}
