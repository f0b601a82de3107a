//! What the status has kept of the past. Pure: it needs nothing but the object, so that spec and status can both be read with it.

use common::kubernetes::conditions::holds;
use crds::RedisCluster;

/// Whether the cluster has served every slot before: a checkpoint of what cannot be observed any more once all data is lost.
pub fn formed_before(cluster: &RedisCluster) -> bool {
    cluster
        .status
        .as_ref()
        .is_some_and(|status| holds(&status.conditions, "Formed"))
}
