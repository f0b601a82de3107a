//! The leader lease: one replica of a controller plans.

use crate::kubernetes::errors::{Classified, ErrorClass};
use crate::runtime::Runtime;
use std::{sync::Arc, time::Instant};
use tokio::sync::watch;

/// Who leads, as this replica knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeadershipState {
    /// While this is in the future, this replica leads.
    pub leading_until: Option<Instant>,
    /// Who holds the lease, as last seen.
    pub holder: Option<String>,
}

/// Whether this replica leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    state: watch::Receiver<LeadershipState>,
    lease: Arc<str>,
}

/// Another replica leads.
#[derive(Debug, thiserror::Error)]
#[error("lease {lease}: this replica does not lead (any more)")]
pub struct NotLeader {
    lease: Arc<str>,
}

impl Classified for NotLeader {
    fn class(&self) -> ErrorClass {
        ErrorClass::Fenced
    }
    fn reason(&self) -> &'static str {
        "NotLeader"
    }
}

impl Leadership {
    /// Starts to compete for the lease `<program>` in the lease namespace. Given back at shutdown, after the work has ended.
    pub fn start(runtime: &Runtime) -> Self {
        todo!()
    }

    /// Whether this replica leads now.
    pub fn is_leader_now(&self) -> bool {
        self.state
            .borrow()
            .leading_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// For the step before a write that only the leader may do.
    pub fn ensure(&self) -> Result<(), NotLeader> {
        if self.is_leader_now() {
            return Ok(());
        }
        Err(NotLeader {
            lease: Arc::clone(&self.lease),
        })
    }

    /// The channel, to wait for changes.
    pub fn watch(&self) -> watch::Receiver<LeadershipState> {
        self.state.clone()
    }
}
