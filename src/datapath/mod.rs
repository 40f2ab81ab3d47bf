//! A packet's trip: received, its flow found, the flow's actions done, sent.
//!
//! Read [`pipeline`] first: it tells the trip in order.
//!
//! - [`pipeline`]: THE STORY
//! - [`marks`], [`emc`], [`classifier`]: the three lookups, cheapest first; [`hash`] feeds the last two
//! - [`upcall`]: what no flow matches; [`execute`], [`output`]: actions and the way out
//! - [`flows`], [`table`]: the flows, and everything that points at them kept in step
//! - [`sweep`]: looking after flows that packets do not
//! - [`poller`]: the thread that owns all of the above; [`inbox`], [`doorbell`]: how others reach it
//! - [`shared`]: the little that pollers have in common
//! - [`switch`]: the datapath as the control thread sees it; [`crew`], [`reassign`], [`balance`], [`window`]: its pollers, and
//!   which of them has which receive queue; [`baton`]: one change at a time

pub mod balance;
pub mod baton;
pub mod classifier;
pub mod counters;
pub mod crew;
pub mod doorbell;
pub mod emc;
pub mod execute;
pub mod flows;
pub mod hash;
pub mod inbox;
pub mod marks;
pub mod output;
pub mod pipeline;
pub mod poller;
pub mod reassign;
pub mod shared;
pub mod sweep;
pub mod switch;
pub mod table;
pub mod upcall;
pub mod window;

#[cfg(test)]
mod tests;
