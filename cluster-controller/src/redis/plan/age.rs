//! How much of what its primary wrote a replica may lack. The servers elect no replica whose copy is too old; they do not ask for its age
//! when the failover is ordered (`clusterHandleSlaveFailover` in the engine's `cluster.c`). It matters as long as the primary may come back.

use crate::redis::survey::{Live, MissingNode, Survey};
use common::cluster::topology::NodeId;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// Two looks at an idle cluster are up to half a minute apart, and a replica hears of its idle primary each 10 s: no bound is closer.
const LEAST: Duration = Duration::from_mins(1);

/// The engine's own bound: `cluster-replica-validity-factor` times the node timeout, and `repl-ping-replica-period` (their defaults).
pub fn most(node_timeout: Duration) -> Duration {
    LEAST.max(node_timeout * 10 + Duration::from_secs(10))
}

/// For how long the primary may have gone on without the replica. None: that was not seen.
pub fn age(
    survey: &Survey<'_>,
    (id, primary): (NodeId, &MissingNode),
    replica: Live<'_>,
    now: Timestamp,
) -> Option<Duration> {
    let home = survey.home(primary)?;
    let ended = *home.expected.unresponsive_since.get(&id)?;
    let age = ended.duration_since(current_until(replica, now)?);
    // Linked for longer than the primary was heard of: it has missed nothing.
    Some(age.try_into().unwrap_or_default())
}

/// Until when a replica had all that was written, as it says or as was seen; the later of both.
pub fn current_until(replica: Live<'_>, now: Timestamp) -> Option<Timestamp> {
    let link = replica.report.replication.upstream.as_ref();
    let linked = link.and_then(|link| link.current_until(now));
    let own = replica.report.id();
    let seen = replica.member.expected.current_until.get(&own).copied();
    linked.max(seen)
}
