//! [`Scanner`], a place in a text; and integers as C writes them.

use super::TextError;

/// A text and how far it has been read. Never splits a character.
#[derive(Clone)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str) -> Scanner<'a> {
        Scanner { text, at: 0 }
    }

    /// The place, for [`Scanner::error_at`].
    pub fn place(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    /// Skips separators.
    pub fn skip_separators(&mut self) {
        self.take_while(is_separator);
    }

    /// Skips `wanted` if it comes next.
    pub fn eat(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len();
        }
        found
    }

    /// Skips `wanted`, which must come next.
    pub fn expect(&mut self, wanted: &str) -> Result<(), TextError> {
        if self.eat(wanted) {
            Ok(())
        } else {
            Err(self.error_at(self.at, format!("expected {wanted:?}, found {}", self.found())))
        }
    }

    /// The characters up to a separator or one of `()=/`; maybe none.
    pub fn word(&mut self) -> &'a str {
        self.take_while(|c| !is_separator(c) && !matches!(c, '(' | ')' | '{' | '}' | '=' | '/'))
    }

    /// Everything up to the closing parenthesis of a body without inner parentheses, which is skipped too.
    pub fn body(&mut self) -> Result<&'a str, TextError> {
        let body = self.take_while(|c| !"()".contains(c));
        self.expect(")")?;
        Ok(body)
    }

    /// The characters of a value: up to a separator, a parenthesis or a brace; maybe none.
    pub fn value(&mut self) -> &'a str {
        self.take_while(|c| !is_separator(c) && !matches!(c, '(' | ')' | '{' | '}' | '='))
    }

    /// Whether `wanted` comes next.
    pub fn comes(&self, wanted: &str) -> bool {
        self.rest().starts_with(wanted)
    }

    /// Goes back to a place that was passed.
    pub fn back_to(&mut self, place: usize) {
        self.at = self.at.min(place);
    }

    /// Whether the body ends here; else skips the separator that must stand between two items of it.
    /// `first`: nothing was read yet, so no separator is needed.
    pub fn at_body_end(&mut self, first: bool) -> Result<bool, TextError> {
        self.at_list_end(first, ')')
    }

    /// The same of a list that ends with `end`.
    pub fn at_list_end(&mut self, first: bool, end: char) -> Result<bool, TextError> {
        let before = self.at;
        self.skip_separators();
        if self.rest().starts_with(end) {
            self.at += end.len_utf8();
            return Ok(true);
        }
        if self.is_at_end() || (!first && self.at == before) {
            let found = self.found();
            return Err(self.error_at(self.at, format!("expected \",\" or \"{end}\", found {found}")));
        }
        Ok(false)
    }

    /// What comes next, for messages.
    pub fn found(&self) -> String {
        match self.rest().chars().next() {
            None => "the end".to_owned(),
            Some(_) => quote(self.rest()),
        }
    }

    /// `what` was wrong at `place`, which came from [`Scanner::place`].
    pub fn error_at(&self, place: usize, what: impl Into<String>) -> TextError {
        TextError { column: self.text[..place].chars().count() + 1, what: what.into() }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !wanted(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }
}

/// `text` in quotes on one line, cut when long.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 32;
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// What an integer's text says: `0x…`, `0…` octal, or decimal. `None`: no integer, or one above 128 bits.
pub fn integer(text: &str) -> Option<u128> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // A sign is no digit here, though the library would take "+1".
    digits.chars().all(|c| c.is_ascii_hexdigit()).then(|| u128::from_str_radix(digits, radix).ok())?
}

fn is_separator(c: char) -> bool {
    matches!(c, ',' | ' ' | '\t' | '\r' | '\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_written_as_in_c() {
        assert_eq!(integer("0"), Some(0));
        assert_eq!(integer("10"), Some(10));
        assert_eq!(integer("0x1F"), Some(31));
        assert_eq!(integer("010"), Some(8));
        for bad in ["", "0x", "08", "-1", "+1", "1a", "é", "0é", "99999999999999999999999999999999999999999"] {
            assert_eq!(integer(bad), None, "{bad}");
        }
    }

    #[test]
    fn columns_count_characters_not_bytes() {
        let mut s = Scanner::new("éé(");
        assert_eq!(s.word(), "éé");
        assert_eq!(s.error_at(s.place(), "x").column, 3);
    }
}
