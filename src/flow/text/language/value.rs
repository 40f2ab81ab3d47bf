//! [`Kind`]: what values look like.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::flow::text::scan::integer;

/// What a value is, with a mask where one may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An integer of at most so many bits.
    Uint(u32),
    /// The same, perhaps with a mask.
    Masked(u32),
    Mac,
    Ipv4,
    Ipv6,
    /// A port's number or name.
    Port,
    /// `no`, `first` or `later`, perhaps with a mask.
    Frag,
    /// `a|b`, `+a-b`, or an integer, perhaps with a mask.
    Flags(&'static [&'static str]),
    /// Bytes in hexadecimal, with `0x` or without.
    Hex,
    /// Bytes in hexadecimal, perhaps with a mask of as many.
    MaskedHex,
    /// A share, like `50.0%`.
    Percent,
    /// A name.
    Word,
    /// An address or a range of them, with a port or a range of those: `10.0.0.1-10.0.0.9:1000-2000`.
    Range,
    /// An integer or a word.
    Any,
}

impl Kind {
    /// # Errors
    /// Says what would be one.
    pub fn check(self, text: &str) -> Result<(), String> {
        let plain = |good: bool, what: &str| if good { Ok(()) } else { Err(what.to_owned()) };
        let masked = |good: &dyn Fn(&str) -> bool, what: &str| {
            let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
            plain(good(value) && mask.is_none_or(good), what)
        };
        match self {
            Kind::Uint(bits) => plain(fits(text, bits), &format!("integer of at most {bits} bits")),
            Kind::Masked(bits) => {
                masked(&|text| fits(text, bits), &format!("integer of at most {bits} bits, or two with / between"))
            }
            Kind::Mac => masked(&is_mac, "Ethernet address"),
            Kind::Ipv4 => masked(&|text| text.parse::<Ipv4Addr>().is_ok() || is_prefix(text, 32), "IPv4 address"),
            Kind::Ipv6 => masked(&|text| text.parse::<Ipv6Addr>().is_ok() || is_prefix(text, 128), "IPv6 address"),
            Kind::Port => {
                let is_number = text.starts_with(|c: char| c.is_ascii_digit()) && integer(text).is_some();
                let is_name = !text.is_empty()
                    && !text.starts_with('-')
                    && text.chars().all(|c| c.is_alphanumeric() || "_.-@:".contains(c));
                plain(if is_number { fits(text, 32) } else { is_name }, "port")
            }
            Kind::Frag => {
                masked(&|text| ["no", "first", "later"].contains(&text) || fits(text, 8), "no, first or later")
            }
            Kind::Flags(names) => plain(is_flags(text, names), &format!("list of flags ({})", names.join("|"))),
            Kind::Hex => plain(is_hex(text), "number of bytes in hexadecimal"),
            Kind::MaskedHex => masked(&is_hex, "number of bytes in hexadecimal"),
            Kind::Percent => {
                let share = text.strip_suffix('%').and_then(|share| share.parse::<f64>().ok());
                plain(share.is_some_and(|share| (0.0..=100.0).contains(&share)), "share such as 50.0%")
            }
            Kind::Word => plain(is_word(text), "name"),
            Kind::Range => plain(
                !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit() || "[]:.-".contains(c)),
                "range of addresses and ports",
            ),
            Kind::Any => plain(is_word(text) || fits(text, 128), "name or integer"),
        }
    }
}

fn fits(text: &str, bits: u32) -> bool {
    integer(text).is_some_and(|value| bits >= 128 || value >> bits == 0)
}

fn is_prefix(text: &str, most: u32) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) && text.parse().is_ok_and(|bits: u32| bits <= most)
}

fn is_mac(text: &str) -> bool {
    let is_byte = |part: &str| (1..=2).contains(&part.len()) && part.chars().all(|c| c.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(is_byte)
}

fn is_hex(text: &str) -> bool {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    digits.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.@:".contains(c))
}

fn is_flags(text: &str, names: &[&str]) -> bool {
    let known = |name: &str| names.contains(&name);
    if text.is_empty() || text.split('|').all(known) {
        return true;
    }
    if text.starts_with(['+', '-']) {
        return text.split_inclusive(['+', '-']).skip(1).all(|name| known(name.trim_end_matches(['+', '-'])));
    }
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    fits(value, 32) && mask.is_none_or(|mask| fits(mask, 32))
}

/// Whether a mask is all zeros, however it is written.
pub fn is_zero(mask: &str) -> bool {
    match integer(mask) {
        Some(value) => value == 0,
        None => {
            mask.parse::<Ipv4Addr>().is_ok_and(|address| address.is_unspecified())
                || mask.parse::<Ipv6Addr>().is_ok_and(|address| address.is_unspecified())
                || mask.parse::<f64>().is_err() && !mask.is_empty() && mask.chars().all(|c| "0:x".contains(c))
        }
    }
}

/// A value as JSON: a number where it is one, an object of value and mask where there is a mask, else its text.
pub fn json(text: &str) -> Value {
    match text.split_once('/') {
        Some((value, mask)) => json!({ "value": json(value), "mask": json(mask) }),
        None => match integer(text).map(u64::try_from) {
            Some(Ok(number)) => json!(number),
            _ => json!(text),
        },
    }
}
