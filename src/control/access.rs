//! [`Access`]: who may call which commands.
//!
//! Each command needs a [`Right`]; whoever has one has those below it. Root and the daemon's own user have all of them; others
//! have what the configuration gives them, by name or by a group that they are in, as the kernel tells of the process at the other end
//! of the socket (unix(7), `SO_PEERCRED` and `SO_PEERGROUPS`): the process that connected, as it was then.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::Serialize;

use crate::sys::peer::peer_groups;

/// What a command may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Looks, changes nothing.
    Read,
    /// Changes what the switch does.
    Write,
    /// Changes or ends the daemon itself, or has it open files and interfaces as the user that it runs as.
    Admin,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Read => "read",
            Right::Write => "write",
            Right::Admin => "admin",
        })
    }
}

/// The process at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    /// All groups that it is in, the primary one first.
    pub groups: Vec<u32>,
    pub pid: i32,
}

impl Credentials {
    /// Asks the kernel.
    pub fn of_peer(socket: impl AsFd) -> io::Result<Credentials> {
        let peer = socket_peercred(&socket)?;
        let mut groups = vec![peer.gid.as_raw()];
        groups.extend(peer_groups(&socket)?);
        Ok(Credentials { uid: peer.uid.as_raw(), groups, pid: peer.pid.as_raw_pid() })
    }

    /// Whether it may do anything: root, and the user that the daemon runs as.
    pub fn is_master(&self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} (process {})", self.uid, self.pid)
    }
}

/// Who has which right, beside root and the daemon's own user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    pub read: Holders,
    pub write: Holders,
    pub admin: Holders,
}

impl Access {
    /// Whether the process has this right, or one above it.
    pub fn allows(&self, peer: &Credentials, right: Right) -> bool {
        let holders = [(Right::Read, &self.read), (Right::Write, &self.write), (Right::Admin, &self.admin)];
        peer.is_master() || holders.iter().any(|(held, holders)| *held >= right && holders.include(peer))
    }
}

/// Users and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// As they were written.
    texts: Vec<String>,
    everybody: bool,
    users: Vec<u32>,
    groups: Vec<u32>,
}

/// Why a text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NobodyError {
    #[error("there is no user {0:?}; expected a user, @GROUP, or * for whoever reaches the socket")]
    User(String),
    #[error("there is no group {0:?}")]
    Group(String),
}

impl Holders {
    /// Adds whom `text` names: a user, `@GROUP`, or `*`. Names may be numbers. Asks the system's user database, which may take its time.
    pub fn add(&mut self, text: &str) -> Result<(), NobodyError> {
        match text.strip_prefix('@') {
            None if text == "*" => self.everybody = true,
            None => {
                let user = text.parse().ok().or_else(|| Some(uzers::get_user_by_name(text)?.uid()));
                self.users.push(user.ok_or_else(|| NobodyError::User(text.to_owned()))?);
            }
            Some(name) => self.groups.push(group(name).ok_or_else(|| NobodyError::Group(name.to_owned()))?),
        }
        self.texts.push(text.to_owned());
        Ok(())
    }

    /// Whom they were named by.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    fn include(&self, peer: &Credentials) -> bool {
        self.everybody || self.users.contains(&peer.uid) || peer.groups.iter().any(|group| self.groups.contains(group))
    }
}

/// The number of a group; `None` if there is none of that name.
pub fn group(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Some(uzers::get_group_by_name(name)?.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not root, and not whoever runs the tests.
    fn stranger() -> Credentials {
        Credentials { uid: geteuid().as_raw() + 4_000, groups: vec![7_001, 7_002], pid: 1 }
    }

    fn holders(texts: &[&str]) -> Holders {
        let mut holders = Holders::default();
        texts.iter().for_each(|text| holders.add(text).unwrap());
        holders
    }

    #[test]
    fn a_right_brings_those_below_it_and_none_above() {
        let access = Access { write: holders(&["@7002"]), ..Access::default() };
        assert!(access.allows(&stranger(), Right::Read) && access.allows(&stranger(), Right::Write));
        assert!(!access.allows(&stranger(), Right::Admin));
    }

    #[test]
    fn rights_are_held_by_user_by_any_of_its_groups_or_by_everybody() {
        let allowed = |texts: &[&str]| {
            let access = Access { read: holders(texts), ..Access::default() };
            access.allows(&stranger(), Right::Read)
        };
        let uid = stranger().uid.to_string();
        assert!(allowed(&[&uid]) && allowed(&["@7001"]) && allowed(&["@7002"]) && allowed(&["*"]));
        assert!(!allowed(&[]) && !allowed(&["7001"]) && !allowed(&[&format!("@{uid}")]) && !allowed(&["root"]));
    }

    #[test]
    fn root_and_the_daemons_own_user_need_no_grant() {
        for uid in [0, geteuid().as_raw()] {
            let master = Credentials { uid, ..stranger() };
            assert!(Access::default().allows(&master, Right::Admin));
        }
        assert!(!Access::default().allows(&stranger(), Right::Read));
    }

    #[test]
    fn nobody_is_an_error_that_says_what_would_do() {
        let error = |text: &str| Holders::default().add(text).unwrap_err().to_string();
        assert!(error("no such user").starts_with("there is no user \"no such user\"; expected a user, @GROUP"));
        assert_eq!(error("@no such group"), "there is no group \"no such group\"");
    }

    #[test]
    fn the_kernel_tells_who_is_at_the_other_end() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = Credentials::of_peer(&ours).unwrap();
        assert_eq!((peer.uid, peer.pid), (geteuid().as_raw(), std::process::id() as i32));
        assert_eq!(peer.groups[0], rustix::process::getegid().as_raw());
    }
}
