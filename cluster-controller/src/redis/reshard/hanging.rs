//! Replicas that their primary does not hear of: slots are handed over without them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long the primary's answer holds: every group of slots would have to wait for it otherwise.
const HOLDS: Duration = Duration::from_secs(1);

/// The replicas of one primary, and when it said so.
#[derive(Debug, Default)]
pub(super) struct HangingReplicas(BTreeMap<SocketAddr, Instant>);

impl HangingReplicas {
    /// Takes in an answer of the primary.
    pub(super) fn note(&mut self, failing: impl Iterator<Item = SocketAddr>) {
        let now = Instant::now();
        self.0 = failing.map(|one| (one, now)).collect();
    }

    /// Whether the primary did not hear of a replica just now.
    pub(super) fn has(&self, replica: SocketAddr) -> bool {
        let asked = self.0.get(&replica);
        asked.is_some_and(|asked| asked.elapsed() < HOLDS)
    }
}
