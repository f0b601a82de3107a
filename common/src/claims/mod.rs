//! Work that the replicas of one controller divide among themselves. The README of this folder explains the protocol.
//!
//! Pure: [`unit`], [`distribution`], [`attempts`]. In memory: [`held`], [`memory`], [`permits`]. With the API server: [`reporter`],
//! [`fence`], and the functions of this module. A controller implements [`unit::UnitKind`], [`worker::DataPath`] and
//! [`planner::Planning`]; [`driver`] runs them.

pub mod attempts;
pub mod distribution;
pub mod driver;
pub mod fence;
pub mod held;
pub mod jobs;
pub mod memory;
pub mod metrics;
mod patch;
pub mod permits;
pub mod planner;
pub mod reporter;
pub mod unit;
pub mod worker;

pub use patch::{Claim, ClaimPath, Claimable, Reported, Taken, UnitReport, free, report, take};

#[cfg(test)]
mod tests;
