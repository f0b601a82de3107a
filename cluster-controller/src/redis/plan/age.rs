//! How much of what its primary wrote a replica may lack. The servers elect no replica whose copy is too old; they do not ask for its age
//! when the failover is ordered (`clusterHandleSlaveFailover` in the engine's `cluster.c`). It matters as long as the primary may come back.

use crate::redis::survey::{Live, MissingNode, Survey};
use common::cluster::{info::UpstreamLink, topology::NodeId};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// The engine's own bound: `cluster-replica-validity-factor` times the node timeout, and `repl-ping-replica-period` (their defaults).
pub fn most(node_timeout: Duration) -> Duration {
    node_timeout * 10 + Duration::from_secs(10)
}

/// For how long the primary was seen to go on without the replica. None: that was not seen.
pub fn age(
    survey: &Survey<'_>,
    (id, primary): (NodeId, &MissingNode),
    replica: Live<'_>,
    now: Timestamp,
) -> Option<Duration> {
    let home = survey.home(primary).map(|home| &home.expected);
    let ended = home.and_then(|home| {
        let seen = home.current_until.get(&id).copied();
        seen.or(home.down_since)
    });
    let link = replica.report.replication.upstream.as_ref();
    let unlinked = link.and_then(UpstreamLink::unlinked_seconds);
    let linked = unlinked.and_then(|seconds| {
        let seconds = SignedDuration::try_from(Duration::from_secs(seconds)).ok()?;
        now.checked_sub(seconds).ok()
    });
    let recorded = replica
        .member
        .expected
        .current_until
        .get(&replica.report.id());
    let copied = linked.max(recorded.copied());
    Some(
        ended?
            .duration_since(copied?)
            .try_into()
            .unwrap_or_default(),
    )
}
