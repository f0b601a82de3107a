//! One pass over one cluster: observe, validate, build, plan, execute, status.

use crate::{
    build::build,
    children,
    context::Context,
    errors::{ReconcileError, Trouble},
    notices,
    observe::{self, NODE_TIMEOUT, Observed, observe, observe_live},
    pace,
    redis::{
        assess::{Assessment, assess},
        execute::{Done, execute},
        plan::{Plan, plan},
    },
    roles,
    status::{self, Findings},
    validate::{Shape, ValidatedCluster, shape, validate},
};
use common::kubernetes::{
    call,
    controller::Reconcile,
    errors::Classified,
    expectations::{Freshness, OwnerKey},
    outcome::Outcome,
    status as server_side,
};
use crds::{RedisCluster, RedisClusterStatus, RedisVersion};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon to look again at a cluster of which not even the shape can be known.
const UNKNOWN: Duration = Duration::from_secs(30);

/// Reconciles RedisClusters.
pub struct Reconciler {
    /// What every pass needs.
    pub context: Context,
}

impl Reconcile<RedisCluster> for Reconciler {
    type Error = ReconcileError;

    async fn reconcile(&self, object: Arc<RedisCluster>) -> Result<Outcome, ReconcileError> {
        let context = &self.context;
        // Children go with their owner; there is nothing to do for one that is on its way out.
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::finished());
        }
        let freshness = context
            .expectations
            .check_own(object.as_ref(), Instant::now());
        let object = match freshness {
            Freshness::Current => object,
            Freshness::Behind(delay) => return Ok(Outcome::waiting("CacheBehind", delay)),
            Freshness::Unknown => match read_live(context, &object).await? {
                Some(live) => Arc::new(live),
                None => return Ok(Outcome::finished()),
            },
        };
        let shape = match shape(&object) {
            Ok(shape) => shape,
            Err(error) => {
                let status = status::invalid(&object, &error, Timestamp::now());
                write_status(context, &object, &status).await?;
                return Ok(Outcome::waiting(error.reason(), UNKNOWN));
            }
        };
        if !shape.paused {
            context.leadership.ensure()?;
        }
        // Whatever is wrong with the spec or refused by the API server: the nodes there are have to be looked after.
        let (cluster, mut trouble) = match validated(context, &object, &shape) {
            Ok(cluster) => {
                let applied = apply(context, &object, &cluster).await;
                (Some(cluster), applied.err())
            }
            Err(error) => (None, Some(error)),
        };
        let pass = mend(context, &object, &shape).await?;
        if !shape.paused {
            let labels = roles::differing(&pass.observed, &pass.assessment);
            let labelled = roles::write(context, &shape.namespace, labels).await;
            trouble = trouble.or(labelled.err().map(Into::into));
        }
        trouble = trouble.or(pass.trouble);
        let told = trouble.as_ref().map(Trouble::of);
        let found = Findings {
            shape: &shape,
            cluster: cluster.as_ref(),
            trouble: told.as_ref(),
            observed: &pass.observed,
            assessment: &pass.assessment,
            plan: &pass.plan,
        };
        let now = Timestamp::now();
        let status = status::compute(&object, &found, now);
        notices::tell(&context.events, &object, &status, &pass.done);
        write_status(context, &object, &status).await?;
        match (trouble, &told) {
            // Tried again soon, and then ever more seldom.
            (Some(error), Some(told)) if told.passing && found.is_whole() => Err(error),
            (Some(error), _) => Ok(pace::troubled(error.reason(), &status, &found, now)),
            (None, _) => Ok(pace::outcome(&status, &found, now)),
        }
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.context.expectations.forget(namespace, name);
        self.context.silences.forget(namespace, name);
        self.context.pod_events.forget(namespace, name);
    }
}

fn validated(
    context: &Context,
    object: &RedisCluster,
    shape: &Shape,
) -> Result<ValidatedCluster, ReconcileError> {
    let entry = object.spec.version.as_deref().and_then(|name| {
        context
            .caches
            .versions
            .get(&ObjectRef::<RedisVersion>::new(name))
    });
    let mut cluster = validate(object, entry.as_deref(), Timestamp::now())?;
    if let Some(storage) = cluster.storage.as_mut().filter(|storage| !storage.settled) {
        let pods = observe::cached(&context.caches.pods, shape);
        storage.settled = observe::all_scheduled(shape, &pods);
    }
    Ok(cluster)
}

async fn apply(
    context: &Context,
    object: &RedisCluster,
    cluster: &ValidatedCluster,
) -> Result<(), ReconcileError> {
    if cluster.shape.paused {
        return Ok(());
    }
    let owner = OwnerKey::of(object);
    Ok(children::apply(context, &owner, build(cluster)).await?)
}

/// What a pass saw and did in the Redis half.
struct Pass {
    observed: Observed,
    assessment: Assessment,
    plan: Plan,
    done: Vec<Done>,
    /// Why nothing was done although there was something to do.
    trouble: Option<ReconcileError>,
}

/// Looks, decides and acts. Steps that could lose data are decided upon once more, with everything read live.
async fn mend(
    context: &Context,
    object: &RedisCluster,
    shape: &Shape,
) -> Result<Pass, ReconcileError> {
    let wanted = observe::wanted(shape, status::formed_before(object));
    let mut observed = observe(context, shape).await;
    let mut steps = plan(&wanted, &observed.members, Timestamp::now());
    let mut done = Vec::new();
    let mut trouble = None;
    if !shape.paused && steps.is_risky() {
        match observe_live(context, shape).await {
            Ok(live) => {
                observed = live;
                steps = plan(&wanted, &observed.members, Timestamp::now());
            }
            Err(error) => trouble = Some(error.into()),
        }
    }
    if !shape.paused && !steps.steps.is_empty() && trouble.is_none() {
        context.leadership.ensure()?;
        done = execute(&steps, &observed.members, NODE_TIMEOUT).await;
    }
    Ok(Pass {
        assessment: assess(&wanted, &observed.members),
        observed,
        plan: steps,
        done,
        trouble,
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

async fn write_status(
    context: &Context,
    object: &RedisCluster,
    wanted: &RedisClusterStatus,
) -> Result<(), ReconcileError> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<RedisCluster> = Api::namespaced(context.client.clone(), namespace);
    if let Some(written) = server_side::write(&api, object, wanted).await? {
        let owner = OwnerKey::of(object);
        context.expectations.wrote(&owner, &written);
    }
    Ok(())
}
