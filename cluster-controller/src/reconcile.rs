//! One reconcile of one cluster: validate, build, apply, observe, plan, execute, label, status.

use crate::{
    build::build,
    children,
    context::Context,
    errors::{Failure, ReconcileError},
    events,
    observe::{self, NODE_TIMEOUT, Observed, observe, observe_live},
    redis::{
        assess::{Assessment, assess},
        execute::execute,
        identity::{has_unrecorded, known_nodes},
        member::Wanted,
        plan::{Plan, plan},
        survey::Survey,
    },
    requeue, roles,
    status::{self, StatusInputs},
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
use kube::{Api, Resource, ResourceExt, runtime::reflector::ObjectRef};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon to reconcile a cluster again of which not even the shape can be known.
const UNKNOWN: Duration = Duration::from_secs(30);
/// How soon to continue once new nodes are recorded.
const RECORDED: Duration = Duration::from_millis(20);

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
        // Whatever is wrong with the spec or refused by the API server, the nodes are repaired: failures are collected, and the
        // first one decides what the status says.
        let mut failures = Vec::new();
        let cluster = keep(&mut failures, validated(context, &object, &shape));
        if let Some(cluster) = cluster.as_ref().filter(|_| !shape.paused) {
            let owner = OwnerKey::of(object.as_ref());
            let applied = children::apply(context, &owner, build(cluster)).await;
            keep(&mut failures, applied.map_err(Into::into));
        }
        let known = status::known_before(&object);
        let wanted = observe::wanted(&shape, status::formed_before(&object), known);
        let mut seen = decide(&wanted, observe(context, &shape, &wanted).await);
        let mut confirmed = !shape.paused;
        if confirmed && seen.plan.is_risky() {
            let live = observe_live(context, &shape, &wanted).await;
            match keep(&mut failures, live.map_err(Into::into)) {
                Some(live) => seen = decide(&wanted, live),
                None => confirmed = false,
            }
        }
        let known = known_nodes(&wanted, &seen.observed.members);
        let is_new = has_unrecorded(&wanted, &known);
        let mut done = Vec::new();
        // A node is recorded before it gets its first command: afterwards only its id tells whose it is.
        if confirmed && !is_new && !seen.plan.steps.is_empty() {
            context.leadership.ensure()?;
            done = execute(&seen.plan, &seen.observed.members, NODE_TIMEOUT).await;
        }
        if !shape.paused {
            let labels = roles::differing(&seen.observed, &seen.assessment);
            let labelled = roles::write(context, &shape.namespace, labels).await;
            keep(&mut failures, labelled.map_err(Into::into));
        }
        let failure = failures.first().map(Failure::of);
        let found = StatusInputs {
            shape: &shape,
            cluster: cluster.as_ref(),
            failure: failure.as_ref(),
            observed: &seen.observed,
            known: &known,
            assessment: &seen.assessment,
            plan: &seen.plan,
        };
        let now = Timestamp::now();
        let status = status::compute(&object, &found, now);
        context.events.publish_all(
            &object.object_ref(&()),
            events::events(&object, &status, &done),
        );
        for message in status::new_texts(&object, &status, &found) {
            let (namespace, name) = (&shape.namespace, &shape.name);
            tracing::info!(
                namespace,
                name,
                phase = status.phase,
                message,
                "status changed"
            );
        }
        let written = write_status(context, &object, &status).await?;
        if confirmed && is_new && !seen.plan.steps.is_empty() {
            if written.is_some_and(|written| written.nodes != status.nodes) {
                return Err(ReconcileError::OldDefinition);
            }
            return Ok(Outcome::progressing("NodesRecorded", RECORDED));
        }
        match (failures.into_iter().next(), &failure) {
            // Tried again soon, and then less and less often.
            (Some(error), Some(failure)) if failure.transient && found.is_healthy() => Err(error),
            (Some(error), _) => Ok(requeue::failed(error.reason(), &status, &found, now)),
            (None, _) => Ok(requeue::outcome(&status, &found, now)),
        }
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.context.expectations.forget(namespace, name);
        self.context.unresponsive.forget(namespace, name);
        self.context.pod_events.forget(namespace, name);
    }
}

/// The value, or none: the failure is collected.
fn keep<T>(failures: &mut Vec<ReconcileError>, result: Result<T, ReconcileError>) -> Option<T> {
    result.map_err(|error| failures.push(error)).ok()
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

/// What was observed, and what follows from it.
struct Decision {
    observed: Observed,
    assessment: Assessment,
    plan: Plan,
}

fn decide(wanted: &Wanted, observed: Observed) -> Decision {
    let survey = Survey::of(wanted, &observed.members);
    Decision {
        plan: plan(&survey, Timestamp::now()),
        assessment: assess(&survey),
        observed,
    }
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
) -> Result<Option<RedisClusterStatus>, ReconcileError> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<RedisCluster> = Api::namespaced(context.client.clone(), namespace);
    let Some(written) = server_side::write(&api, object, wanted).await? else {
        return Ok(None);
    };
    let owner = OwnerKey::of(object);
    context.expectations.wrote(&owner, &written);
    Ok(written.status)
}
