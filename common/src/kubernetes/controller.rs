//! The run loop of one kind: one watch for each kind that is looked at, a cache of each, bounded concurrency, retries by
//! error class, metrics, Events, an orderly end.

use super::{errors::Classified, leases::Leadership, outcome::Outcome, wake::Wake};
use crate::runtime::Runtime;
use kube::{
    Api, Resource,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

/// One kind's reconcile.
pub trait Reconcile<K: Watched>: Send + Sync + 'static {
    /// What can go wrong.
    type Error: Classified;

    /// One pass over one object. Never sleeps, never polls; says when to look again.
    fn reconcile(
        &self,
        object: Arc<K>,
    ) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;

    /// The object is gone from the cache: forget what was kept in memory for it.
    fn gone(&self, namespace: &str, name: &str) {
        let _ = (namespace, name);
    }
}

/// What a watched kind has to be able to do.
pub trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// A controller of objects of kind `K`, being put together.
pub struct Controller<K: Watched> {
    runtime: Runtime,
    store: Store<K>,
    wake: Wake<K>,
}

impl<K: Watched> Controller<K> {
    /// Watches the objects themselves, in the namespace the program watches or in all.
    pub fn new(runtime: &Runtime, primary: Api<K>) -> Self {
        todo!()
    }

    /// Watches children; a change of one wakes its owner (by controller owner reference). Returns their cache.
    pub fn owns<C: Watched>(&mut self, api: Api<C>, config: watcher::Config) -> Store<C> {
        todo!()
    }

    /// Watches related objects; `owners` names whom a change of one wakes. Returns their cache.
    pub fn watches<C: Watched>(
        &mut self,
        api: Api<C>,
        config: watcher::Config,
        owners: impl Fn(&C) -> Vec<ObjectRef<K>> + Send + 'static,
    ) -> Store<C> {
        todo!()
    }

    /// Reconciles only while this process leads; wakes every object when it starts to lead.
    pub fn only_leader(&mut self, leadership: &Leadership) {
        todo!()
    }

    /// Every replica reconciles (and asks `is_leader_now` where it matters); a change of leadership wakes every object.
    pub fn wake_on_leadership(&mut self, leadership: &Leadership) {
        todo!()
    }

    /// Wakes every object this often, with the watches quiet.
    pub fn wake_every(&mut self, period: Duration) {
        todo!()
    }

    /// The cache of the objects themselves.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// To wake an object from elsewhere, for example when a task has ended.
    pub fn wake(&self) -> Wake<K> {
        self.wake.clone()
    }

    /// Runs until shutdown; then waits for the reconciles under way. Starts when every cache is complete.
    pub async fn run<R: Reconcile<K>>(self, reconciler: Arc<R>) {
        todo!()
    }
}
