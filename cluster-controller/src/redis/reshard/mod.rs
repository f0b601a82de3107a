//! Moving slots between shards: what the tables say, what follows from it, and the engines that do it.
//!
//! [`tables()`] asks every primary, [`plan()`] decides (it is pure, as [`moves()`] and [`open_slots()`] are), [`run()`] acts. The plan is
//! recomputed from what the servers say, so it does not matter where an earlier run was interrupted: whatever it left open is finished,
//! closed or taken back by the next plan before anything else moves.
//!
//! Order within a slot: the target is marked first, then the source; when the source has no key of the slot left the target takes the slot
//! first, then the source and the others learn of it. So at every moment one node answers for each key, and a node that is killed leaves
//! either the old primary or the new one with all keys it has acknowledged.

mod atomic;
mod checks;
mod context;
mod error;
mod functions;
mod legacy;
mod limits;
mod moves;
mod nodes;
mod open_slots;
#[cfg(test)]
mod open_slots_tests;
mod plan;
mod progress;
mod run;
mod tables;
mod weights;

pub use atomic::has_running_job;
pub use error::ReshardError;
pub use limits::{Engine, EngineChoice, ReshardLimits};
pub use moves::{ShardLoad, SlotMove, misplaced, moves};
pub use nodes::NodeEndpoints;
pub use open_slots::{OpenSlotCause, OpenSlotDecision, SlotTable, SlotTables, open_slots};
pub use plan::{ReshardPlan, plan};
pub use progress::ReshardProgress;
pub use run::{ReshardEnd, ReshardSummary, run};
pub use tables::tables;
pub use weights::{SlotWeights, even_out};
