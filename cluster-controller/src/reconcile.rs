//! One reconcile of one cluster: validate, observe, plan, build, apply, record new nodes, execute, report readiness and roles, status.

use crate::{
    build::{build, redis_conf},
    change::{Change, Changed},
    children,
    context::Context,
    decision::{Decision, Goal, decide},
    errors::{Failure, ReconcileError},
    events,
    hand_overs::{AFTER_FAILURE, WHILE_HELD},
    hibernate, live_settings,
    observe::{self, NODE_TIMEOUT, Observed, observe, observe_live},
    operation::Operation,
    pod_patch,
    redis::{
        execute::{Done, execute},
        identity::{has_unrecorded, known_nodes},
    },
    requeue, roles, rollout, serving,
    settings::{assess::SettingsGoal, live},
    status::{self, StatusInputs},
    support::VersionSupport,
    trials::{self, Trial},
    validate::{Shape, ValidatedCluster, shape, validate},
    volume_claims,
    volumes::{self, ClaimChange, Claims, Growth},
};
use common::kubernetes::{
    call::{self, ApiError},
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
/// Kubernetes nodes that are read before a hand-over, at most: one after the other, as long as each turns out to be cordoned.
const MOST_CORDONED: usize = 8;
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
        let place = (shape.namespace.as_str(), shape.name.as_str());
        if shape.paused {
            context.resharding.cancel(place);
        } else {
            context.leadership.ensure()?;
        }
        // Whatever is wrong with the spec or refused by the API server, the nodes are repaired: failures are collected, and the
        // first one decides what the status says.
        let mut failures = Vec::new();
        let mut cluster = keep(&mut failures, validated(context, &object));
        let trial = trials::gate(context, &shape, cluster.as_mut());
        let refused = trial.decision.gate.error().cloned();
        failures.extend(refused.map(ReconcileError::from));
        let settings = cluster.as_ref().map(|cluster| {
            SettingsGoal::of(cluster, redis_conf(cluster), trial.configurations.clone())
        });
        let known = status::known_before(&object);
        let last_seen = status::last_seen_before(&object);
        let mut wanted = observe::wanted(&shape, status::formed_before(&object), known);
        let pods = observe::cached(&context.caches.pods, &shape);
        wanted.may_spread = context.hand_overs.may_try(place, Timestamp::now())
            && !rollout::is_due(cluster.as_ref(), &pods)
            && !context.settings.restart_due(place);
        let created = object.metadata.creation_timestamp.as_ref();
        let claims = volume_claims::cached(context, &shape);
        wanted.absent_are_blank =
            !wanted.formed_before && observe::absent_are_blank(&shape, created, &pods, &claims);
        let sets = children::existing_sets(context, &shape);
        let mut awaited = None;
        let mut hibernates = shape.hibernate;
        if shape.hibernate {
            let asked = hibernate::waits_for(context, &object, &shape, (&sets, &pods)).await;
            awaited = keep(&mut failures, asked).unwrap_or_default();
            let may_stop = failures.is_empty() && awaited.is_none();
            hibernates = may_stop || pods.is_empty();
        }
        let may_change = !shape.hibernate;
        let shape = Shape {
            hibernate: hibernates,
            ..shape.clone()
        };
        let goal = Goal {
            shape: &shape,
            cluster: cluster.as_ref(),
            wanted: &wanted,
            sets: &sets,
            moving: context.resharding.is_moving(place),
            settings: settings.as_ref(),
        };
        let names = settings.as_ref().map(|settings| settings.names(&pods));
        let names = names.unwrap_or_default();
        let answers = context.settings.answers(place);
        let decide = |observed| decide(&goal, observed, &answers, Timestamp::now());
        let mut seen = decide(observe(context, &shape, &wanted, &last_seen, &names).await);
        if seen.observed.passed_over {
            return Ok(Outcome::waiting("AnswerMissed", requeue::SOON));
        }
        if shape.hibernate {
            hibernate::hold_writes(context, place, &seen.observed.members, &pods).await?;
        }
        let mut confirmed = !shape.paused && !shape.hibernate;
        if confirmed && seen.plan.is_risky() {
            let live = observe_live(context, &shape, &wanted, &last_seen, &names).await;
            match keep(&mut failures, live.map_err(Into::into)) {
                Some(live) => seen = decide(live),
                None => confirmed = false,
            }
        }
        if confirmed {
            seen = without_cordoned(context, seen, decide).await;
        }
        if seen.lacks_kept_volumes && confirmed {
            let volumes: Vec<(i32, i32)> = claims.keys().copied().collect();
            seen.sets = seen.sets.with_volumes(&volumes);
        }
        let mut growth = None;
        if let Some(cluster) = cluster.as_ref().filter(|_| !shape.paused) {
            context.leadership.ensure()?;
            let applied = apply(context, &object, cluster, (&seen, &trial, &claims));
            growth = keep(&mut failures, applied.await.map_err(Into::into));
        }
        let known = known_nodes(&wanted, &seen.observed.members);
        let is_new = has_unrecorded(&wanted, &known);
        let mut done = Vec::new();
        // A node is recorded before it gets its first command: afterwards only its id tells whose it is.
        if confirmed && !is_new && !seen.plan.steps.is_empty() {
            context.leadership.ensure()?;
            let steps = take_steps(context, place, &seen).await;
            done = keep(&mut failures, steps).unwrap_or_default();
        }
        let change = Change {
            object: object.as_ref(),
            shape: &shape,
            cluster: cluster.as_ref(),
            decision: &seen,
        };
        let mut changed = Changed::default();
        if confirmed && !is_new && may_change {
            let carried = change.carry_out(context).await;
            changed = keep(&mut failures, carried).unwrap_or_default();
        }
        let mut set = Vec::new();
        if let Some(settings) = settings.as_ref().filter(|_| confirmed && !is_new) {
            context.leadership.ensure()?;
            let (decided, outcomes) =
                Box::pin(live_settings::carry_out(context, &goal, settings, seen)).await;
            seen = decided;
            set = keep(&mut failures, outcomes.map_err(Into::into)).unwrap_or_default();
        }
        let moves = context.resharding.state(place);
        let operation = cluster.as_ref().and_then(|cluster| {
            if let Some(awaited) = &awaited {
                return Some(Operation::of_hibernation(pods.len(), awaited));
            }
            let gate = &trial.decision.gate;
            Operation::of(&seen, cluster, &moves, gate, changed.holder.as_deref())
        });
        done.extend(changed.done);
        // Readiness is a report, as the status is: also of a cluster that is paused.
        let mut patches = serving::changes(&seen.observed, Timestamp::now());
        if !shape.paused && !shape.hibernate {
            patches.extend(roles::changes(&seen.observed, &seen.assessment));
        }
        let written = pod_patch::write(context, &shape.namespace, patches).await;
        keep(&mut failures, written.map_err(Into::into));
        let refused = cluster.as_ref().and_then(|one| one.server.refused.clone());
        failures.extend(refused.map(ReconcileError::from));
        let failure = failures.first().map(Failure::of);
        let found = StatusInputs {
            shape: &shape,
            cluster: cluster.as_ref(),
            failure: failure.as_ref(),
            observed: &seen.observed,
            known: &known,
            assessment: &seen.assessment,
            plan: &seen.plan,
            rollout: &seen.rollout,
            operation: operation.as_ref(),
            growth: growth.as_ref(),
            gate: &trial.decision.gate,
            settings: &seen.settings,
        };
        let now = Timestamp::now();
        let status = status::compute(&object, &found, now);
        let before = object.status.as_ref();
        let status = context.progress.paced(place, before, status, now);
        let mut events = events::events(&object, &status, &done, &changed.replaced);
        events.extend(live::events(&set));
        context.events.publish_all(&object.object_ref(&()), events);
        log_changes(&object, &status, &found);
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
            // What the servers answered decides what is next.
            (None, _) if !set.is_empty() => Ok(Outcome::progressing("SettingsSent", requeue::SOON)),
            (None, _) => Ok(requeue::outcome(&status, &found, now)),
        }
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.context.expectations.forget(namespace, name);
        self.context.unresponsive.forget(namespace, name);
        self.context.pod_events.forget(namespace, name);
        self.context.hand_overs.forget(namespace, name);
        self.context.progress.forget(namespace, name);
        self.context.strays.forget(namespace, name);
        self.context.resharding.forget(namespace, name);
        self.context.resizes.forget(namespace, name);
        self.context.held.forget(namespace, name);
        self.context.connections.forget(namespace, name);
        self.context.settings.forget(namespace, name);
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

/// Makes the children what they are to be, then the pod that tries their configuration, and the volumes.
async fn apply(
    context: &Context,
    object: &RedisCluster,
    cluster: &ValidatedCluster,
    (seen, trial, claims): (&Decision, &Trial, &Claims),
) -> Result<Growth, ApiError> {
    let (sets, pods) = (&seen.sets, &seen.observed.pods);
    let children = build(cluster, &sets.sizes);
    let owner = OwnerKey::of(object);
    let namespace = owner.namespace.as_str();
    let (untied, tied) = volumes::ties(cluster, &sets.sizes, claims)
        .into_iter()
        .partition(|patch| matches!(patch.change, ClaimChange::Untie { .. }));
    // Before a StatefulSet shrinks: the volume of a pod that leaves goes with its last owner.
    volume_claims::write_ties(context, namespace, untied).await?;
    // Boxed: a typed StatefulSet makes the future of every caller many kilobytes long.
    Box::pin(children::apply(
        context,
        &owner,
        children,
        &sets.removed,
        pods,
    ))
    .await?;
    trials::carry_out(context, &owner, cluster, trial).await?;
    volume_claims::write_ties(context, namespace, tied).await?;
    let (place, now) = ((namespace, owner.name.as_str()), Timestamp::now());
    let refusal = context.resizes.refusal(place);
    let mut growth = volumes::growth(cluster, &sets.sizes, claims, refusal, now);
    volume_claims::ask_for_more(context, place, &mut growth).await?;
    if growth.is_asked_for() {
        children::recreate_outgrown(context, &owner, cluster, &sets.sizes).await?;
    }
    Ok(growth)
}

/// Decides a hand-over again without the Kubernetes nodes that turn out to be cordoned.
async fn without_cordoned(
    context: &Context,
    mut seen: Decision,
    decide: impl Fn(Observed) -> Decision,
) -> Decision {
    for _ in 0..MOST_CORDONED {
        let Some(target) = seen.takes_a_primary() else {
            break;
        };
        if !context.machines.is_cordoned(&target).await {
            break;
        }
        let mut observed = seen.observed;
        observed.mark_cordoned(&target);
        seen = decide(observed);
    }
    seen
}

fn log_changes(object: &RedisCluster, status: &RedisClusterStatus, found: &StatusInputs<'_>) {
    let (namespace, name) = (&found.shape.namespace, &found.shape.name);
    for message in status::new_texts(object, status, found) {
        let phase = &status.phase;
        tracing::info!(namespace, name, phase, message, "status changed");
    }
}

/// Takes the steps of the plan. A hand-over waits until no operation needs the roles to stay, and after a failure for longer.
async fn take_steps(
    context: &Context,
    place: (&str, &str),
    seen: &Decision,
) -> Result<Vec<Done>, ReconcileError> {
    let hands_over = seen.plan.hands_over();
    if hands_over && !is_free(context, place).await? {
        let until = Timestamp::now() + WHILE_HELD;
        context.hand_overs.postpone(place, until);
        return Ok(Vec::new());
    }
    let connections = context.connections.of(place);
    let members = &seen.observed.members;
    let done = execute(&seen.plan, members, &connections, NODE_TIMEOUT).await;
    if hands_over && done.iter().any(|one| one.result.is_err()) {
        let until = Timestamp::now() + AFTER_FAILURE;
        context.hand_overs.postpone(place, until);
    }
    Ok(done)
}

/// Whether no operation holds the cluster whose slots and roles have to stay: a backup, a restore, a move of slots.
async fn is_free(
    context: &Context,
    (namespace, name): (&str, &str),
) -> Result<bool, ReconcileError> {
    let holder = context.operations.holder(namespace, name).await?;
    Ok(holder.is_none())
}

/// The value, or none: the failure is collected.
fn keep<T>(failures: &mut Vec<ReconcileError>, result: Result<T, ReconcileError>) -> Option<T> {
    result.map_err(|error| failures.push(error)).ok()
}

fn validated(context: &Context, object: &RedisCluster) -> Result<ValidatedCluster, ReconcileError> {
    let versions = &context.caches.versions;
    let entry = |name: &str| versions.get(&ObjectRef::<RedisVersion>::new(name));
    let named = object.spec.version.as_deref().and_then(entry);
    let now = Timestamp::now();
    let mut cluster = validate(object, named.as_deref(), now)?;
    let kept = cluster.server.entry.as_deref().and_then(entry);
    if let Some(kept) = kept.filter(|_| cluster.server.refused.is_some()) {
        cluster.server.support = VersionSupport::of(&kept.spec, now);
    }
    Ok(cluster)
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
