//! [`Ufid`], the 128-bit name of a megaflow that people and commands use.

use std::fmt;
use std::str::FromStr;

/// A megaflow's name: random, or derived from its masked key *and* mask, so that every poller calls it the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ufid(pub u128);

impl fmt::Display for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl FromStr for Ufid {
    type Err = uuid::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(Ufid(uuid::Uuid::parse_str(s)?.as_u128()))
    }
}
