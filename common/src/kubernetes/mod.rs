//! What every controller does with the Kubernetes API.
//!
//! One call: [`call`]. One write: [`apply`], [`status`] with [`conditions`] and [`kstatus`], [`finalizer`]. One reconcile:
//! [`controller`] with [`grouped`] caches, [`outcome`], [`mod@errors`], [`expectations`]. Who may act: [`leases`].

pub mod apply;
pub mod call;
pub mod conditions;
pub mod controller;
pub mod drift;
pub mod expectations;
pub mod finalizer;
pub mod grouped;
pub mod hash;
pub mod kstatus;
pub mod leases;
pub mod outcome;
pub mod pods;
mod retries;
pub mod status;
pub mod trigger;
mod watches;

pub use crate::{errors, runtime::events};
