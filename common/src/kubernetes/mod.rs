//! What every controller does with the Kubernetes API.
//!
//! One call: [`call`]. One write: [`apply`], [`status`], [`finalizer`]. One reconcile: [`controller`] with [`outcome`],
//! [`mod@errors`], [`expectations`]; beside it: [`background`]. Units of work shared by replicas: [`claims`] write them, [`share`]
//! decides which are whose, [`sessions`] take them and tell of them. Who may act: [`leases`].

pub mod apply;
pub mod background;
pub mod call;
pub mod claims;
pub mod conditions;
pub mod controller;
pub mod drift;
pub mod expectations;
pub mod fence;
pub mod finalizer;
pub mod hash;
pub mod leases;
pub mod outcome;
mod retries;
pub mod session;
pub mod sessions;
pub mod share;
pub mod status;
pub mod wake;
mod watches;

pub use crate::{errors, runtime::events};
