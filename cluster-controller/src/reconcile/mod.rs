//! One reconcile of one cluster. `inputs` reads what is wanted and what the caches show, `look` asks the nodes and decides, `act` does what was
//! decided, `report` writes readiness, roles and status.

mod act;
mod failures;
mod inputs;
mod look;
mod report;

use crate::{context::Context, errors::ReconcileError, requeue, status, validate::shape};
use act::act;
use common::kubernetes::{call, controller::Reconcile, expectations::Freshness, outcome::Outcome};
use crds::RedisCluster;
use failures::Failures;
use inputs::Inputs;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use look::look;
use report::{report, write_status};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon to reconcile a cluster again of which not even the shape can be known.
const UNKNOWN: Duration = Duration::from_secs(30);

/// Nodes of a cluster for which a reconcile takes a place: about a thousand are looked at at the same time.
const NODES_A_PLACE: u32 = 16;

/// Reconciles RedisClusters.
pub struct Reconciler {
    /// Clients and caches.
    pub context: Context,
}

impl Reconcile<RedisCluster> for Reconciler {
    type Error = ReconcileError;

    async fn reconcile(&self, object: Arc<RedisCluster>) -> Result<Outcome, ReconcileError> {
        let context = &self.context;
        // Children go with their owner; nothing is to be done for one that is being deleted.
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::finished());
        }
        let object = match current(context, object).await? {
            Current::Object(object) => object,
            Current::Not(outcome) => return Ok(outcome),
        };
        let shape = match shape(&object) {
            Ok(shape) => shape,
            Err(error) => {
                let status = status::invalid(&object, &error, Timestamp::now());
                write_status(context, &object, &status).await?;
                return Ok(Outcome::waiting(error.reason(), UNKNOWN));
            }
        };
        if shape.paused {
            let place = (shape.namespace.as_str(), shape.name.as_str());
            context.resharding.cancel(place);
        } else {
            context.leadership.ensure()?;
        }
        let mut failures = Failures::default();
        let inputs = Inputs::read(context, object, shape, &mut failures).await?;
        let Some(seen) = look(context, &inputs, &mut failures).await? else {
            return Ok(Outcome::waiting("AnswerMissed", requeue::SOON));
        };
        let (seen, effects) = act(context, &inputs, seen, &mut failures).await?;
        report(context, &inputs, seen, effects, failures).await
    }

    /// What a look holds in memory grows with the nodes.
    fn places(&self, object: &RedisCluster) -> u32 {
        let spec = &object.spec;
        let nodes = spec
            .shards
            .saturating_mul(1 + spec.replicas_per_shard.max(0));
        u32::try_from(nodes).unwrap_or(1).div_ceil(NODES_A_PLACE)
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.context.expectations.forget(namespace, name);
        self.context.unresponsive.forget(namespace, name);
        self.context.copies.forget(namespace, name);
        self.context.elections.forget(namespace, name);
        self.context.pod_events.forget(namespace, name);
        self.context.hand_overs.forget(namespace, name);
        self.context.progress.forget(namespace, name);
        self.context.strays.forget(namespace, name);
        self.context.resharding.forget(namespace, name);
        self.context.resizes.forget(namespace, name);
        self.context.held.forget(namespace, name);
        self.context.connections.forget(namespace, name);
        self.context.settings.forget(namespace, name);
        self.context.rules.forget(namespace, name);
        self.context.secrets.forget(namespace, name);
        self.context.certificates.forget(namespace, name);
    }
}

/// The object to reconcile, or why there is none now.
enum Current {
    Object(Arc<RedisCluster>),
    Not(Outcome),
}

/// The cached object, unless this process has written one that the cache does not show yet.
async fn current(context: &Context, object: Arc<RedisCluster>) -> Result<Current, ReconcileError> {
    let freshness = context
        .expectations
        .check_own(object.as_ref(), Instant::now());
    Ok(match freshness {
        Freshness::Current => Current::Object(object),
        Freshness::Behind(delay) => Current::Not(Outcome::waiting("CacheBehind", delay)),
        Freshness::Unknown => match read_live(context, &object).await? {
            Some(live) => Current::Object(Arc::new(live)),
            None => Current::Not(Outcome::finished()),
        },
    })
}

/// The object itself, where the cache has not shown our last write of it for too long.
async fn read_live(
    context: &Context,
    object: &RedisCluster,
) -> Result<Option<RedisCluster>, ReconcileError> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<RedisCluster> = Api::namespaced(context.client.clone(), namespace);
    let name = object.name_any();
    let what = format!("get RedisCluster {namespace}/{name}");
    Ok(call::read_optional(what, api.get(&name)).await?)
}
