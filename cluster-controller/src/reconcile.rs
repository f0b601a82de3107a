//! One pass over one cluster: observe, validate, build, plan, execute, status.

use crate::{
    build::build,
    children,
    context::Context,
    errors::ReconcileError,
    notices,
    observe::{NODE_TIMEOUT, Observed, observe, observe_live, wanted},
    redis::{
        assess::assess,
        execute::{Done, execute},
        member::Wanted,
        plan::{Plan, plan},
    },
    roles,
    status::{self, Findings},
    validate::{ValidatedCluster, validate},
};
use common::kubernetes::{
    controller::Reconcile,
    expectations::{OwnerKey, Verdict},
    outcome::Outcome,
    status as server_side,
};
use crds::{RedisCluster, RedisClusterStatus, RedisVersion};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, runtime::reflector::ObjectRef};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon to look again while something is being done about it.
const SOON: Duration = Duration::from_millis(300);
/// How soon to look again while only waiting can help.
const LATER: Duration = Duration::from_secs(2);
/// How soon to look again at a cluster that is whole.
const AT_REST: Duration = Duration::from_secs(30);

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
        if let Verdict::Pending(delay) = context
            .expectations
            .check_own(object.as_ref(), Instant::now())
        {
            return Ok(Outcome::waiting("CacheBehind", delay));
        }
        let entry = object.spec.version.as_deref().and_then(|name| {
            context
                .caches
                .versions
                .get(&ObjectRef::<RedisVersion>::new(name))
        });
        let cluster = match validate(&object, entry.as_deref(), Timestamp::now()) {
            Ok(cluster) => cluster,
            Err(error) => {
                let status = status::invalid(&object, &error, Timestamp::now());
                write_status(context, &object, &status).await?;
                return Ok(Outcome::waiting(error.reason(), AT_REST));
            }
        };
        if !cluster.paused {
            context.leadership.ensure()?;
            children::apply(context, &OwnerKey::of(object.as_ref()), build(&cluster)).await?;
        }
        let pass = mend(context, &object, &cluster).await?;
        let assessment = assess(&pass.wanted, &pass.observed.members);
        if !cluster.paused {
            let labels = roles::differing(&pass.observed, &assessment);
            roles::write(context, &cluster.namespace, labels).await?;
        }
        let found = Findings {
            cluster: &cluster,
            observed: &pass.observed,
            assessment: &assessment,
            plan: &pass.plan,
        };
        let status = status::compute(&object, &found, Timestamp::now());
        notices::tell(&context.events, &object, &status, &pass.done);
        write_status(context, &object, &status).await?;
        Ok(outcome(
            &cluster,
            assessment.is_whole() && pass.plan.steps.is_empty(),
            &pass,
        ))
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.context.expectations.forget(namespace, name);
    }
}

/// What a pass saw and did in the Redis half.
struct Pass {
    wanted: Wanted,
    observed: Observed,
    plan: Plan,
    done: Vec<Done>,
}

/// Looks, decides and acts. Steps that could lose data are decided upon once more, with everything read live.
async fn mend(
    context: &Context,
    object: &RedisCluster,
    cluster: &ValidatedCluster,
) -> Result<Pass, ReconcileError> {
    let wanted = wanted(cluster, status::formed_before(object));
    let mut observed = observe(context, cluster).await;
    let mut steps = plan(&wanted, &observed.members, Timestamp::now());
    let mut done = Vec::new();
    if !cluster.paused && !steps.steps.is_empty() {
        if steps.is_risky() {
            observed = observe_live(context, cluster).await?;
            steps = plan(&wanted, &observed.members, Timestamp::now());
        }
        context.leadership.ensure()?;
        done = execute(&steps, &observed.members, NODE_TIMEOUT).await;
    }
    Ok(Pass {
        wanted,
        observed,
        plan: steps,
        done,
    })
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

fn outcome(cluster: &ValidatedCluster, whole: bool, pass: &Pass) -> Outcome {
    if cluster.paused {
        return Outcome::waiting("Paused", AT_REST);
    }
    if whole {
        return Outcome::settled(AT_REST);
    }
    if !pass.plan.steps.is_empty() {
        return Outcome::progressing("Mending", SOON);
    }
    // Pods that come up wake us by their watch; nodes that make up their minds have to be asked.
    let anybody = pass
        .observed
        .members
        .iter()
        .any(|member| member.report().is_some());
    Outcome::waiting("Converging", if anybody { SOON } else { LATER })
}
