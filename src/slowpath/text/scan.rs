//! Pieces of a text that know where they stand, and the values in them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::flow::PortNo;
use crate::flow::text::{PortNames, TextError};

/// Part of a text, and its first byte's offset in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'t> {
    pub text: &'t str,
    pub at: usize,
}

/// What was wrong at a byte's offset.
#[derive(Debug)]
pub(super) struct Fail {
    pub at: usize,
    pub what: String,
}

impl Fail {
    /// The error to show, of this text.
    pub fn within(self, text: &str) -> TextError {
        let column = text.char_indices().take_while(|(at, _)| *at < self.at).count() + 1;
        TextError { column, what: self.what }
    }
}

impl<'t> Piece<'t> {
    pub fn whole(text: &'t str) -> Piece<'t> {
        Piece { text, at: 0 }
    }

    pub fn fail(&self, what: String) -> Fail {
        Fail { at: self.at, what }
    }

    /// This is not `wanted`.
    pub fn refuse(&self, wanted: &str) -> Fail {
        // What a person sees should stay a line, whatever was sent.
        let mut shown: String = self.text.chars().take(40).collect();
        if shown.len() < self.text.len() {
            shown.push('…');
        }
        self.fail(format!("{shown:?} is not {wanted}"))
    }

    /// Around the first `separator`, if there is one.
    pub fn split(&self, separator: &str) -> Option<(Piece<'t>, Piece<'t>)> {
        let (before, after) = self.text.split_once(separator)?;
        let at = self.at + before.len() + separator.len();
        Some((Piece { text: before, at: self.at }, Piece { text: after, at }))
    }

    /// `VALUE[/MASK]`.
    pub fn masked(&self) -> (Piece<'t>, Option<Piece<'t>>) {
        self.split("/").map_or((*self, None), |(value, mask)| (value, Some(mask)))
    }

    /// The first `length` bytes, which are left out of this piece then.
    pub fn take(&mut self, length: usize) -> Piece<'t> {
        let (taken, rest) = self.text.split_at(length);
        let piece = Piece { text: taken, at: self.at };
        *self = Piece { text: rest, at: self.at + length };
        piece
    }

    pub fn trim_start(&mut self, drop: impl Fn(char) -> bool) {
        let length = self.text.len() - self.text.trim_start_matches(drop).len();
        self.take(length);
    }

    /// A number from 0 to `max`, decimal or with `0x`.
    pub fn number(&self, max: u64) -> Result<u64, Fail> {
        let parsed = match self.text.strip_prefix("0x").or_else(|| self.text.strip_prefix("0X")) {
            Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16),
            _ if self.text.starts_with('+') => "".parse(),
            _ => self.text.parse(),
        };
        match parsed {
            Ok(number) if number <= max => Ok(number),
            _ => Err(self.refuse(&format!("a number from 0 to {max}"))),
        }
    }

    /// `VALUE[/MASK]`, both up to `max`; without a mask all of it.
    pub fn masked_number(&self, max: u64) -> Result<(u128, u128), Fail> {
        let (value, mask) = self.masked();
        let mask = mask.map_or(Ok(max), |m| m.number(max))?;
        Ok((value.number(max)?.into(), mask.into()))
    }

    /// `aa:bb:cc:dd:ee:ff[/MASK]`.
    pub fn mac(&self) -> Result<(u128, u128), Fail> {
        let one = |piece: Piece| {
            let bytes: Option<Vec<u8>> = piece.text.split(':').map(hex_byte).collect();
            match bytes {
                Some(bytes) if bytes.len() == 6 => Ok(bytes.iter().fold(0u128, |mac, b| mac << 8 | u128::from(*b))),
                _ => Err(piece.refuse("an Ethernet address like 02:00:00:00:00:01")),
            }
        };
        let (value, mask) = self.masked();
        Ok((one(value)?, mask.map_or(Ok((1 << 48) - 1), one)?))
    }

    /// An address with `/PREFIX-LENGTH`, `/MASK` or neither.
    fn address<A: FromStr>(&self, bits: u32, like: &str, number: impl Fn(A) -> u128) -> Result<(u128, u128), Fail> {
        let one = |piece: Piece| piece.text.parse().map(&number).map_err(|_| piece.refuse(like));
        let full = u128::MAX >> (128 - bits);
        let (value, mask) = self.masked();
        let mask = match mask {
            None => full,
            Some(length) if length.text.bytes().all(|b| b.is_ascii_digit()) => {
                let length = length.number(bits.into())? as u32;
                full & !full.checked_shr(length).unwrap_or(0)
            }
            Some(mask) => one(mask)?,
        };
        Ok((one(value)?, mask))
    }

    pub fn ipv4(&self) -> Result<(u128, u128), Fail> {
        self.address(32, "an IPv4 address like 10.0.0.1", |a: Ipv4Addr| u32::from(a).into())
    }

    pub fn ipv6(&self) -> Result<(u128, u128), Fail> {
        self.address(128, "an IPv6 address like 2001:db8::1", |a: Ipv6Addr| a.into())
    }

    /// A port's number or name. What can be a number is one, even if a port is called so; what stands in quotes is a name.
    pub fn port(&self, ports: &dyn PortNames) -> Result<PortNo, Fail> {
        if let Some(name) = self.text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            return ports.number(name).ok_or_else(|| self.refuse("a port's name"));
        }
        match self.number(PortNo::MAX.0.into()) {
            Ok(number) if number != 0 => Ok(PortNo(number as u32)),
            _ => ports.number(self.text).ok_or_else(|| self.refuse("a port's name or a number from 1 to 65535")),
        }
    }
}

fn hex_byte(text: &str) -> Option<u8> {
    (matches!(text.len(), 1 | 2) && !text.starts_with('+')).then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

/// Whether words can be parted by it.
pub(super) fn is_separator(c: char) -> bool {
    matches!(c, ',' | ' ' | '\t' | '\r' | '\n')
}

/// Takes the next `WORD` or `WORD=VALUE`, whose value is empty in the first case. `actions=` ends right behind its sign if `to_actions`.
pub(super) fn next_word<'t>(rest: &mut Piece<'t>, to_actions: bool) -> Result<Option<(Piece<'t>, Piece<'t>)>, Fail> {
    rest.trim_start(is_separator);
    if rest.text.is_empty() {
        return Ok(None);
    }
    if to_actions {
        for sign in ["actions=", "action="] {
            if rest.text.starts_with(sign) {
                let word = rest.take(sign.len() - 1);
                rest.take(1);
                return Ok(Some((word, *rest)));
            }
        }
    }
    let length = rest.text.find(is_separator).unwrap_or(rest.text.len());
    let word = rest.take(length);
    Ok(Some(word.split("=").unwrap_or((word, Piece { text: "", at: word.at + length }))))
}

/// The number of a port, or its name where that can be read back without doubt.
pub(super) fn port_name(port: PortNo, ports: &dyn PortNames) -> String {
    let is_plain = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            && ports.number(name) == Some(port)
    };
    ports.name(port).filter(is_plain).unwrap_or_else(|| port.to_string())
}
