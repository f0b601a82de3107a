//! Does what was decided: children, repair of the nodes, changes of pods and slots, settings.

use super::{
    failures::Failures,
    inputs::Inputs,
    look::{Seen, look_again},
};
use crate::{
    build::build,
    certificates::{self, report::CertificatesReport},
    change::{Change, Changed},
    children,
    context::Context,
    decision::Decision,
    errors::ReconcileError,
    hand_overs::{AFTER_FAILURE, WHILE_HELD},
    live_settings,
    losses::unnamed,
    observe::NODE_TIMEOUT,
    redis::{
        execute::{Done, execute},
        identity::{KnownNodes, has_unrecorded, known_nodes},
    },
    settings::answer::LiveOutcome,
    status::formed_before,
    trials::{self, Trial},
    users::{self, report::UsersReport},
    validate::ValidatedCluster,
    volume_claims,
    volumes::{self, ClaimChange, Claims, Growth},
};
use common::kubernetes::{call::ApiError, expectations::OwnerKey};
use crds::{LossStatus, RedisCluster};
use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;

/// What was done.
pub(super) struct Effects {
    /// The nodes that the status has to record.
    pub(super) known: KnownNodes,
    /// Whether one of them is not recorded yet.
    pub(super) is_new: bool,
    /// The volumes that grow.
    pub(super) growth: Option<Growth>,
    /// Steps of the plan, and hand-overs.
    pub(super) done: Vec<Done>,
    /// Keys that the plan gives up and that the status has to name before.
    pub(super) loss: Option<LossStatus>,
    /// Pods and slots.
    pub(super) changed: Changed,
    /// Settings that were sent.
    pub(super) set: Vec<LiveOutcome>,
    /// How far the servers have their users.
    pub(super) users: UsersReport,
    /// How far the servers have their certificate.
    pub(super) certificates: CertificatesReport,
}

/// Acts as far as it is confirmed. The decision that is left knows what the servers answered to settings.
pub(super) async fn act(
    context: &Context,
    inputs: &Inputs,
    seen: Seen,
    failures: &mut Failures,
) -> Result<(Seen, Effects), ReconcileError> {
    let Inputs {
        object,
        shape,
        cluster,
        ..
    } = inputs;
    let Seen {
        mut decision,
        confirmed,
    } = seen;
    let mut users = users::seen(&inputs.users, &decision.observed);
    let (place, encryption) = (inputs.place(), &inputs.certificates);
    let mut certificates = certificates::seen(context, place, encryption, &decision.observed);
    if confirmed {
        context.leadership.ensure()?;
        let owner = OwnerKey::of(object.as_ref());
        // Before pods are made that start with them.
        let next = users::carry_out(context, &owner, &inputs.users, &decision.observed).await;
        users = failures.keep(next).unwrap_or(users);
        let next = certificates::carry_out(context, &owner, encryption, &decision.observed).await;
        certificates = failures.keep(next).unwrap_or(certificates);
    }
    let mut growth = None;
    // A set that shrinks by a pod in memory does so once that is confirmed; a cluster in memory does not hibernate.
    let may_apply = confirmed || shape.hibernate || !decision.removes_memory(&inputs.sets);
    if let Some(cluster) = cluster.as_ref().filter(|_| !shape.paused && may_apply) {
        context.leadership.ensure()?;
        let found = (&decision, &inputs.trial, &inputs.claims);
        growth = failures.keep(apply(context, object, cluster, found).await);
    }
    let known = known_nodes(&inputs.wanted, &decision.observed.members);
    let is_new = has_unrecorded(&inputs.wanted, &known);
    let formed = formed_before(object);
    let before = object.status.as_ref();
    let before = before.and_then(|status| status.last_loss.as_ref());
    let loss = unnamed(&decision.plan, formed, before, Timestamp::now()).filter(|_| confirmed);
    let mut done = Vec::new();
    // A node is recorded before it gets its first command: afterwards only its id tells whose it is.
    let is_recorded = !is_new && loss.is_none();
    if confirmed && is_recorded && !decision.plan.steps.is_empty() {
        context.leadership.ensure()?;
        let steps = take_steps(context, inputs.place(), &decision).await;
        done = failures.keep(steps).unwrap_or_default();
    }
    let mut changed = Changed::default();
    if confirmed && !is_new && !inputs.is_to_hibernate {
        let change = Change {
            object: object.as_ref(),
            shape,
            cluster: cluster.as_ref(),
            decision: &decision,
            look_again: &|| look_again(context, inputs).boxed(),
        };
        let carried = change.carry_out(context).await;
        changed = failures.keep(carried).unwrap_or_default();
    }
    let mut set = Vec::new();
    if let Some(settings) = inputs.settings.as_ref().filter(|_| confirmed && !is_new) {
        context.leadership.ensure()?;
        let goal = inputs.goal();
        let sending = live_settings::carry_out(context, &goal, settings, decision);
        let (decided, outcomes) = Box::pin(sending).await;
        decision = decided;
        set = failures.keep(outcomes).unwrap_or_default();
    }
    done.append(&mut changed.done);
    let effects = Effects {
        known,
        is_new,
        growth,
        done,
        loss,
        changed,
        set,
        users,
        certificates,
    };
    let seen = Seen {
        decision,
        confirmed,
    };
    Ok((seen, effects))
}

/// Makes the children what they are to be, then the pod that tries their configuration, and the volumes.
async fn apply(
    context: &Context,
    object: &RedisCluster,
    cluster: &ValidatedCluster,
    (seen, trial, claims): (&Decision, &Trial, &Claims),
) -> Result<Growth, ApiError> {
    let (sets, pods) = (&seen.sets, &seen.observed.pods);
    let children = build(cluster, &sets.sizes, &context.namespace);
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
    // One that is created again while its template is kept would not be kept whole.
    if growth.is_asked_for() && cluster.held.is_empty() {
        children::recreate_outgrown(context, &owner, cluster, &sets.sizes).await?;
    }
    Ok(growth)
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
