//! Makes sure that the pods of a cluster which is to hibernate may go: nothing that needs them is under way.

use crate::{
    context::Context,
    errors::ReconcileError,
    observe::NODE_TIMEOUT,
    pods::Pods,
    redis::{execute::pause_writes, member::Member},
    sets::ExistingSet,
    validate::Shape,
};
use common::kubernetes::leases::Holder;
use crds::RedisCluster;
use std::time::Duration;

/// How long writes are paused, again in each reconcile until the pods are gone.
const WRITE_PAUSE: Duration = Duration::from_secs(10);

/// What has to end before the pods may go; none: they may. The operation Lease is held from then on until they are gone, so that no backup
/// begins meanwhile.
pub async fn waits_for(
    context: &Context,
    object: &RedisCluster,
    shape: &Shape,
    (sets, pods): (&[ExistingSet], &Pods),
) -> Result<Option<String>, ReconcileError> {
    let place = (shape.namespace.as_str(), shape.name.as_str());
    context.resharding.cancel(place);
    let holder = Holder::of(object);
    if has_begun(shape, sets) {
        if pods.is_empty()
            && let Err(error) = context.held.release(place, &holder).await
        {
            tracing::info!(%error, "the operation Lease was not released: it expires");
        }
        return Ok(None);
    }
    if context.resharding.is_moving(place) {
        return Ok(Some("the move of slots".to_owned()));
    }
    context.leadership.ensure()?;
    let other = context.held.take(place, &holder).await?;
    Ok(other.map(|other| other.to_string()))
}

/// Holds the writes of clients until the pods are gone.
pub async fn hold_writes(
    context: &Context,
    place: (&str, &str),
    members: &[Member],
    pods: &Pods,
) -> Result<(), ReconcileError> {
    // When its pods start again, they have been away for no time.
    context.unresponsive.forget(place.0, place.1);
    if !pods.is_empty() {
        context.leadership.ensure()?;
        let connections = context.connections.of(place);
        pause_writes(members, &connections, WRITE_PAUSE, NODE_TIMEOUT).await;
    }
    Ok(())
}

/// Whether pods have been stopped already: from then on only the spec brings them back.
fn has_begun(shape: &Shape, sets: &[ExistingSet]) -> bool {
    let mut wanted = sets.iter().filter(|set| set.shard < shape.shards);
    sets.is_empty() || wanted.any(|set| set.pods == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{shape, tests::example};

    /// A failure on the way must not start the pods of one shard again.
    #[test]
    fn a_hibernation_that_has_begun_waits_for_nothing() {
        let shape = shape(&example()).unwrap();
        let sets = |pods: [i32; 4]| {
            let sets = (0..).zip(pods);
            let sets = sets.map(|(shard, pods)| ExistingSet { shard, pods });
            sets.collect::<Vec<_>>()
        };
        assert!(has_begun(&shape, &[]));
        assert!(!has_begun(&shape, &sets([2, 2, 2, 2])));
        assert!(has_begun(&shape, &sets([2, 0, 2, 2])));
        // The set of a shard that is not wanted any more.
        assert!(!has_begun(&shape, &sets([2, 2, 2, 0])));
    }
}
