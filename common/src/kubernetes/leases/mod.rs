//! Leases: who leads, which replicas live, and whose operation on a cluster is under way.
//!
//! Expiry is judged by the observer's own clock since the last change it saw of a lease, never by comparing the clocks of two
//! machines. Every write carries the resourceVersion it was decided on.

mod client;
mod leader;
mod members;
mod operation;
mod record;
mod renewal;
#[cfg(test)]
mod tests;

pub use leader::{Leadership, LeadershipState, NotLeader};
pub use members::{Members, Membership};
pub use operation::{Holder, Operation, OperationLeases};
