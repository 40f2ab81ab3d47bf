//! The integration tests, in one binary: the switch as its users meet it.

/// Who may call what: processes of other users. Needs root.
mod access;
/// Rules, stations and flows whose packets only the device sees.
mod ageing;
/// Frames of every kind the switch must carry, made from a seed.
mod capture;
/// Everything at once, at random, and what must hold when it is over.
mod churn;
/// Commands that have no other place, one by one.
mod commands;
/// Completion in a real bash.
mod completion;
/// Open vSwitch's clients drive the daemon, ours drives Open vSwitch's, and both servers behave alike.
mod conformance;
/// The control socket: what clients of every kind may do to it, and what they get.
mod control;
/// The manual pages, held against the program.
mod docs;
/// Flows and packets by hand: what operators type, word for word.
mod flows;
/// Starting, reloading, flushing and ending, and what is left afterwards: nothing.
mod lifecycle;
/// What the rules of the replay say, worked out without any of the switch's code.
mod linear;
/// Marks that are used again while a full ring of their old packets waits.
mod marks;
/// Metrics, and what asks for them.
mod metrics;
/// A million changes of what the device is to do with a thousand flows.
mod modifies;
/// The whole switch between network namespaces, as the manual shows it. Needs root.
mod namespaces;
/// Network namespaces that go away with their test.
mod netns;
/// Open vSwitch's own daemons, in a directory of their own.
mod ovs;
/// Pollers that come and go, and receive queues that move between them, under traffic.
mod pollers;
/// Ports on real interfaces, in network namespaces of their own. Needs root.
mod ports_netns;
/// Input that must be refused, at the start and later: one line that says what and where, and nothing changed.
mod refusals;
/// Mistakes that others made and that show from outside only.
mod regressions;
/// Captures replayed through rules: every frame comes out as the rules say, with and without a device.
mod replay;
/// Megaflows and the device follow what changes: rules, ports, stations, time.
mod revalidate;
/// Open vSwitch's own scenarios of partial and full offload.
mod scenarios;
/// The schema document, held against what a daemon at work answers.
mod schema;
/// What a service manager hears of the daemon.
mod supervisor;
/// Offload paused, threads changed, the device reset or hung in the middle of a replay.
mod upheaval;
/// The simulated NIC against the datapath's own reading of packets.
mod witness;
/// A running daemon in a directory of its own, and the client that drives it.
mod world;
/// `xsk` ports and the XDP device, where they are built in. Needs root.
#[cfg(xdp)]
mod xsk;
/// Zipf traffic and a device that is too small for it.
mod zipf;
