//! The integration tests, in one binary: the switch as its users meet it.

/// Frames of every kind the switch must carry, made from a seed.
mod capture;
/// The control socket: what clients of every kind may do to it, and what they get.
mod control;
/// The manual pages, held against the program.
mod docs;
/// The whole switch between network namespaces, as the manual shows it. Needs root.
mod namespaces;
/// Network namespaces that go away with their test.
mod netns;
/// Ports on real interfaces, in network namespaces of their own. Needs root.
mod ports_netns;
/// The simulated NIC against the datapath's own reading of packets.
mod witness;
