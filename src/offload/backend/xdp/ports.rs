//! [`Ports`]: the interfaces that the program runs at.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::net::netdevice::index_to_name_inlined;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::layout::{self, PORTS, QUEUES};
use super::shared::Shared;
use crate::flow::PortNo;
use crate::sys::netdev;
use crate::xdp::{Hook, netlink};

/// The ports of a device. One thread at a time: its owner is a lock.
pub struct Ports {
    shared: Arc<Shared>,
    served: BTreeMap<PortNo, Served>,
    /// What stands behind marks of the port that was connected last; never 0. A port that comes, or comes back, does not believe those of before.
    generation: u32,
}

struct Served {
    slot: usize,
    /// `None` in tests, which have no interface.
    hook: Option<Arc<Hook>>,
    interface: u32,
    queues: Vec<u32>,
    /// Its frames are not copied, and there is no room in front of them when they are redirected (`xdp_convert_zc_to_xdp_frame` in the
    /// kernel's net/core/xdp.c).
    zero_copy: bool,
    /// Its driver sends frames that are redirected to it.
    takes: bool,
}

/// Whether the interface's driver drops redirected frames without room in front of them, where it lays a header of its own.
fn needs_room(interface: u32) -> bool {
    let driver = || -> io::Result<String> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        netdev::driver(&socket, index_to_name_inlined(&socket, interface)?.as_str())
    };
    driver().is_ok_and(|driver| driver == "virtio_net")
}

impl Ports {
    pub fn new(shared: Arc<Shared>) -> Ports {
        Ports { shared, served: BTreeMap::new(), generation: 0 }
    }

    /// The program runs at the port's interface from now on.
    ///
    /// # Errors
    /// The interface does not take it, or there are too many; the plain program runs on.
    ///
    /// `in_use`: rules send to the port of this slot.
    pub fn connect(&mut self, number: PortNo, hook: &Arc<Hook>, in_use: impl Fn(usize) -> bool) -> io::Result<()> {
        if let Some(served) = self.served.get(&number) {
            let same = served.hook.as_ref().is_some_and(|served| Arc::ptr_eq(served, hook));
            if same {
                return Ok(());
            }
            self.disconnect(number);
        }
        let interface = hook.interface();
        let slot = self.enter(number, interface, Some(Arc::clone(hook)), in_use)?;
        let served = self.begin(slot, hook);
        if served.is_err() {
            self.disconnect(number);
        }
        served?;
        self.look_again(number);
        Ok(())
    }

    fn begin(&mut self, slot: usize, hook: &Hook) -> io::Result<()> {
        for (queue, socket) in hook.sockets() {
            let place = (slot * QUEUES) as u32 + queue;
            self.shared.sockets.update(&place.to_ne_bytes(), &socket.as_fd().as_raw_fd().to_ne_bytes())?;
            if let Some(served) = self.served.values_mut().find(|served| served.slot == slot) {
                served.queues.push(place);
            }
        }
        hook.run(self.shared.object.program()?)?;
        hook.set_generation(self.generation);
        Ok(())
    }

    /// Makes the program know a port. Answers with its slot, which is none that rules send to yet: those that sent to the port that had it
    /// before are found there until the worker has come to them.
    pub fn enter(
        &mut self,
        number: PortNo,
        interface: u32,
        hook: Option<Arc<Hook>>,
        in_use: impl Fn(usize) -> bool,
    ) -> io::Result<usize> {
        let taken = |slot: usize| self.served.values().any(|served| served.slot == slot) || in_use(slot);
        let slot = (0..PORTS).find(|slot| !taken(*slot));
        let slot = slot.ok_or_else(|| io::Error::other(format!("the XDP device serves {PORTS} ports at most")))?;
        self.shared.clear_port(slot);
        let generation = self.next_generation();
        self.shared.ports.update(&interface.to_ne_bytes(), &layout::port(number.0, slot as u32, generation))?;
        let zero_copy =
            hook.as_ref().is_some_and(|hook| hook.sockets().iter().any(|(_, socket)| socket.is_zero_copy()));
        self.served.insert(number, Served { slot, hook, interface, queues: Vec::new(), zero_copy, takes: false });
        Ok(slot)
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }

    /// No port believes a mark that was given until now.
    ///
    /// # Errors
    /// A port may still do so.
    pub fn disbelieve(&mut self) -> io::Result<()> {
        let generation = self.next_generation();
        for (number, served) in &self.served {
            let port = layout::port(number.0, served.slot as u32, generation);
            self.shared.ports.update(&served.interface.to_ne_bytes(), &port)?;
            if let Some(hook) = &served.hook {
                hook.set_generation(generation);
            }
        }
        Ok(())
    }

    /// Asks anew whether the port's driver takes redirected frames. `true` when that has changed.
    pub fn look_again(&mut self, number: PortNo) -> bool {
        let zero_copy = self.served.values().any(|served| served.zero_copy);
        let Some(served) = self.served.get_mut(&number) else { return false };
        let takes = netlink::takes_redirects(served.interface).ok().flatten().unwrap_or(false)
            && !(zero_copy && needs_room(served.interface));
        if takes == served.takes {
            return false;
        }
        let slot = (served.slot as u32).to_ne_bytes();
        let told = match takes {
            true => self.shared.wires.update(&slot, &layout::wire(served.interface)),
            // Rules that send there mark their packets from now on.
            false => self.shared.wires.delete(&slot),
        };
        if let Err(error) = told {
            log::warn!(target: "xdp", "port {number}: {error}");
            return false;
        }
        served.takes = takes;
        true
    }

    /// Nothing is sent to the port any more, and the program is not its own any more.
    pub fn disconnect(&mut self, number: PortNo) {
        let Some(served) = self.served.remove(&number) else { return };
        // What is not there need not go.
        let _ = self.shared.wires.delete(&(served.slot as u32).to_ne_bytes());
        if let Some(hook) = &served.hook {
            // First of all: the plain program leaves in front of a frame what stands there.
            hook.set_generation(0);
            // An interface that is gone has no program.
            let _ = hook.run_plain();
        }
        let _ = self.shared.ports.delete(&served.interface.to_ne_bytes());
        for place in &served.queues {
            let _ = self.shared.sockets.delete(&place.to_ne_bytes());
        }
        if let Err(error) = self.shared.settle() {
            log::warn!(target: "xdp", "port {number}: {error}");
        }
    }

    /// Where the program sends what is to leave by this port.
    pub fn way_out(&self, number: PortNo) -> Option<u32> {
        self.served.get(&number).filter(|served| served.takes).map(|served| served.slot as u32)
    }

    /// Where the program counts the port's packets.
    pub fn slot(&self, number: PortNo) -> Option<usize> {
        self.served.get(&number).map(|served| served.slot)
    }

    /// Lets rules send to a port that has the loopback interface for a wire.
    #[cfg(test)]
    pub fn pretend_to_take(&mut self, number: PortNo) -> io::Result<()> {
        let Some(served) = self.served.get_mut(&number) else { return Err(io::ErrorKind::NotFound.into()) };
        served.takes = true;
        self.shared.wires.update(&(served.slot as u32).to_ne_bytes(), &layout::wire(1))
    }
}
