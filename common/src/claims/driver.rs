//! Both sides of one replica: every replica works on units, the leader plans.

use super::{
    metrics::WorkMetrics,
    permits::Quota,
    planner::{Planner, PlannerError, Planning},
    unit::UnitKind,
    worker::{DataPath, Worker},
};
use crate::{
    kubernetes::{
        controller::{Controller, Reconcile},
        leases::{Leadership, Membership},
        outcome::Outcome,
        trigger::Trigger,
    },
    runtime::Runtime,
};
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::sync::Arc;

/// Both sides of one replica.
pub struct Driver<D: DataPath, P: Planning<Kind = D::Kind>> {
    worker: Arc<Worker<D>>,
    planner: Planner<P>,
    leadership: Leadership,
}

impl<D: DataPath, P: Planning<Kind = D::Kind>> Driver<D, P> {
    /// Joins the replicas that work on the objects of `controller`.
    pub fn new(
        runtime: &Runtime,
        controller: &Controller<<D::Kind as UnitKind>::Object>,
        leadership: Leadership,
        metrics: &WorkMetrics,
        quota: Quota,
        data_path: D,
        planning: P,
    ) -> Arc<Self> {
        let membership = Membership::start(runtime);
        let (objects, enqueue) = (controller.store(), controller.trigger());
        enqueue_when_joined(
            runtime,
            membership.clone(),
            objects.clone(),
            enqueue.clone(),
        );
        Arc::new(Self {
            worker: Worker::new(
                runtime,
                membership,
                data_path,
                quota,
                metrics.clone(),
                objects,
                enqueue.clone(),
            ),
            planner: Planner::new(
                runtime,
                planning,
                leadership.clone(),
                metrics.clone(),
                enqueue,
            ),
            leadership,
        })
    }
}

impl<D, P, K> Reconcile<K> for Driver<D, P>
where
    D: DataPath<Kind: UnitKind<Object = K>>,
    P: Planning<Kind = D::Kind>,
    K: super::Claimable,
{
    type Error = PlannerError;

    async fn reconcile(&self, object: Arc<K>) -> Result<Outcome, PlannerError> {
        self.worker.reconcile(&object).await?;
        // Only the leader plans; what it has begun is dropped when it ceases to lead, which enqueues every object.
        let planned = self.planner.reconcile(&object);
        match self.leadership.while_leading(planned).await {
            Ok(outcome) => outcome,
            Err(_) => Ok(match self.leadership.look_again() {
                Some(delay) => Outcome::waiting("NotLeading", delay),
                None => Outcome::finished(),
            }),
        }
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.worker.deleted(namespace, name);
        self.planner.deleted(namespace, name);
    }
}

/// Objects of a namespace whose units are not listed yet: what they wait for may just have happened.
pub fn without_units<U: UnitKind>(
    objects: &Store<U::Object>,
    namespace: Option<&str>,
    concerns: impl Fn(&U::Object) -> bool,
) -> Vec<ObjectRef<U::Object>> {
    let waits = |object: &U::Object| {
        object.meta().namespace.as_deref() == namespace
            && !U::is_finished(object)
            && U::units(object).is_empty()
            && concerns(object)
    };
    let state = objects.state();
    let waiting = state.iter().filter(|object| waits(object));
    waiting
        .map(|object| ObjectRef::from_obj(object.as_ref()))
        .collect()
}

/// Units can be taken only after the member Lease is written: objects that were reconciled before are enqueued then.
fn enqueue_when_joined<K: super::Claimable>(
    runtime: &Runtime,
    mut membership: Membership,
    objects: Store<K>,
    enqueue: Trigger<K>,
) {
    runtime.keep("wait for the member lease", |end| async move {
        if end.run_until_cancelled(membership.joined()).await == Some(true) {
            for object in objects.state() {
                enqueue.object(&object.namespace().unwrap_or_default(), &object.name_any());
            }
        }
    });
}
