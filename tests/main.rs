//! The integration tests, in one binary.

/// Ports on real interfaces, in network namespaces of their own. Needs root.
mod ports_netns;
