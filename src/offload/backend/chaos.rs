//! [`Faults`]: what can be made to go wrong with a device.

/// Faults of a device, all absent at first.
#[derive(Debug, Default)]
pub struct Faults {}
