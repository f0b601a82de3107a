//! Writes readiness, roles, Events and the status, and says when to look again.

use super::{act::Effects, failures::Failures, inputs::Inputs, look::Seen};
use crate::{
    access,
    context::Context,
    errors::ReconcileError,
    events,
    operation::Operation,
    pod_patch,
    progress::{self, PacedStatus},
    requeue, roles, serving,
    settings::live,
    status::{self, StatusInputs},
};
use common::kubernetes::{
    errors::Classified, expectations::OwnerKey, outcome::Outcome, status as server_side,
};
use crds::{RedisCluster, RedisClusterStatus};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Resource};
use std::time::Duration;

/// How soon to ask servers again that lack certificates: a kubelet takes up to two minutes to mount a change of a Secret.
const MOUNTED_AGAIN: Duration = Duration::from_secs(3);
/// How soon to continue once new nodes, or keys that are to be given up, are recorded.
const RECORDED: Duration = Duration::from_millis(20);

/// Reports what was seen and done.
pub(super) async fn report(
    context: &Context,
    inputs: &Inputs,
    Seen {
        decision: seen,
        confirmed,
    }: Seen,
    effects: Effects,
    mut failures: Failures,
) -> Result<Outcome, ReconcileError> {
    let Inputs {
        object,
        shape,
        cluster,
        trial,
        ..
    } = inputs;
    let place = inputs.place();
    let moves = context.resharding.state(place);
    let gate = &trial.decision.gate;
    let operation = cluster.as_ref().and_then(|cluster| {
        if let Some(awaited) = &inputs.awaited {
            return Some(Operation::of_hibernation(inputs.pods.len(), awaited));
        }
        Operation::of(
            &seen,
            cluster,
            &moves,
            gate,
            effects.changed.holder.as_deref(),
        )
    });
    // Readiness is a report, as the status is: also of a cluster that is paused.
    let mut patches = serving::changes(&seen.observed, Timestamp::now());
    if !shape.paused && !shape.hibernate {
        patches.extend(roles::changes(&seen.observed, &seen.assessment));
    }
    failures.keep(pod_patch::write(context, &shape.namespace, patches).await);
    if let Some(refused) = cluster.as_ref().and_then(|one| one.server.refused.clone()) {
        failures.push(refused);
    }
    let failure = failures.first();
    let access = access::report::report(&shape.access, &seen.observed.members, shape.port());
    let found = StatusInputs {
        shape,
        cluster: cluster.as_ref(),
        failure: failure.as_ref(),
        observed: &seen.observed,
        known: &effects.known,
        assessment: &seen.assessment,
        plan: &seen.plan,
        rollout: &seen.rollout,
        operation: operation.as_ref(),
        growth: effects.growth.as_ref(),
        gate,
        settings: &seen.settings,
        loss: effects.loss.as_ref(),
        users: &effects.users,
        certificates: &effects.certificates,
        access: &access,
    };
    let now = Timestamp::now();
    let newest = status::compute(object, &found, now);
    let has_steps = confirmed && !seen.plan.steps.is_empty();
    let records = has_steps && (effects.is_new || effects.loss.is_some());
    let PacedStatus {
        status,
        is_held_back,
    } = context
        .progress
        .paced(place, object.status.as_ref(), (newest, records), now);
    let mut events = events::events(object, &status, &effects.done, &effects.changed.replaced);
    events.extend(live::events(&effects.set));
    context.events.publish_all(&object.object_ref(&()), events);
    log_changes(object, &status, &found);
    let written = write_status(context, object, &status).await?;
    if records {
        let lacks = |written: RedisClusterStatus| {
            written.nodes != status.nodes
                || written.last_loss.is_some() != status.last_loss.is_some()
        };
        if written.is_some_and(lacks) {
            return Err(ReconcileError::OldDefinition);
        }
        return Ok(Outcome::progressing("Recorded", RECORDED));
    }
    let outcome = match (failures.into_first(), &failure) {
        // Tried again soon, and then less and less often.
        (Some(error), Some(failure)) if failure.transient && found.is_healthy() => {
            return Err(error);
        }
        (Some(error), _) => requeue::failed(error.reason(), &status, &found, now),
        // What the servers answered decides what is next.
        (None, _) if effects.users.changed && found.is_healthy() => {
            Outcome::progressing("UsersGiven", requeue::SOON)
        }
        (None, _) if effects.certificates.changed && found.is_healthy() => {
            Outcome::progressing("CertificatesGiven", MOUNTED_AGAIN)
        }
        (None, _) if !effects.set.is_empty() => Outcome::progressing("SettingsSent", requeue::SOON),
        (None, _) => requeue::outcome(&status, &found, now),
    };
    Ok(if is_held_back {
        outcome.within(progress::INTERVAL.unsigned_abs())
    } else {
        outcome
    })
}

fn log_changes(object: &RedisCluster, status: &RedisClusterStatus, found: &StatusInputs<'_>) {
    let (namespace, name) = (&found.shape.namespace, &found.shape.name);
    for message in status::new_texts(object, status, found, Timestamp::now()) {
        let phase = &status.phase;
        tracing::info!(namespace, name, phase, message, "status changed");
    }
}

/// None: nothing differed.
pub(super) async fn write_status(
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
