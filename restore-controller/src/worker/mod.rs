//! The data path of a restore: replays one object of the backup for each unit that this replica takes.

mod error;
mod order;

pub use error::UnitReplayError;

use crate::{
    metrics::RestoreMetrics,
    replay::{Progress, ReplayError, ReplayRequest, ValueLimit, Window, read_routes, replay},
    source::Source,
    units::{ReplayEnd, Replayed, RestoreUnits, reported},
};
use common::{
    access::{self, Buckets},
    claims::{
        held::Work,
        worker::{ActiveUnit, DataPath},
    },
    cluster::seeds::Seeds,
    errors::Recovery,
    kubernetes::call::ApiError,
    runtime::telemetry,
    storage::CompressionPool,
};
use crds::{OwnUser, RedisRestore};
use kube::Client;
use order::ReplayOrder;
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// How long the target may take no key before the attempt has failed: a failover takes the node timeout and some seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long to wait before the target's nodes are read again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What a replay needs beside its order.
pub struct ReplayPath {
    client: Client,
    buckets: Buckets,
    pool: CompressionPool,
    metrics: RestoreMetrics,
    value_limit: ValueLimit,
}

impl ReplayPath {
    /// One for all replays of the process.
    pub fn new(
        client: Client,
        buckets: Buckets,
        metrics: RestoreMetrics,
        value_limit: ValueLimit,
    ) -> Self {
        Self {
            client,
            buckets,
            pool: CompressionPool::of_machine(),
            metrics,
            value_limit,
        }
    }

    /// Replays an object from where its progress is. Dropping the future stops it.
    async fn replay(&self, order: &ReplayOrder) -> Result<(), UnitReplayError> {
        let storage = &order.origin.storage;
        let store = self.buckets.open(&order.namespace, storage).await?;
        let seeds = self.seeds(order).await?;
        let source = Source::open(store, &order.origin).await?;
        let (record, index) = source.shard(order.shard).await?;
        let request = ReplayRequest {
            key: source.key(record),
            slots: record.slots.iter().copied().collect(),
            index: Arc::new(index),
            seeds,
            from: *order.progress.borrow(),
            window: Window::default(),
            patience: PATIENCE,
            value_limit: self.value_limit,
        };
        let (store, pool) = (source.store().clone(), self.pool.clone());
        let done = replay(store, pool, &request, &order.progress).await?;
        if done.foreign > 0 {
            tracing::warn!(
                shard = order.shard,
                keys = done.foreign,
                "keys were left out: their slots did not belong to their shard when it was backed up"
            );
        }
        Ok(())
    }

    /// Where the target's nodes are; waits until one of them answers with the slot map. Pods that are replaced have new addresses,
    /// so they are listed again.
    async fn seeds(&self, order: &ReplayOrder) -> Result<Seeds, UnitReplayError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.readable(order).await? {
                Ok(seeds) => return Ok(seeds),
                Err(error) if Instant::now() >= until => return Err(error.into()),
                Err(error) => tracing::info!(%error, "the target is not readable yet"),
            }
            sleep(READ_AGAIN).await;
        }
    }

    /// One look: the nodes, if one of them answers with the slot map.
    async fn readable(&self, order: &ReplayOrder) -> Result<Result<Seeds, ReplayError>, ApiError> {
        let nodes = access::nodes(
            &self.client,
            &order.namespace,
            &order.cluster,
            OwnUser::Restore,
        )
        .await?;
        let seeds = match nodes.seeds(None) {
            Ok(seeds) => seeds,
            Err(error) => return Ok(Err(error.into())),
        };
        let routes = read_routes(seeds.addresses(), seeds.access()).await;
        Ok(routes.map(|_| seeds))
    }
}

/// A replay at work.
pub struct Replaying(watch::Receiver<Progress>);

impl Work for Replaying {
    type Done = Replayed;

    fn fields(&self, end: Option<&ReplayEnd>) -> Map<String, Value> {
        reported(*self.0.borrow(), end)
    }
}

impl DataPath for ReplayPath {
    type Kind = RestoreUnits;
    type Order = ReplayOrder;
    type Work = Replaying;
    type Error = UnitReplayError;

    const VERB: &'static str = "replay";
    const DONE: (&'static str, &'static str) = ("loaded", "Loaded");

    fn order(
        &self,
        restore: &RedisRestore,
        position: usize,
        _: i32,
    ) -> Result<(ReplayOrder, Replaying), UnitReplayError> {
        let order = ReplayOrder::of(restore, position)?;
        let work = Replaying(order.progress.subscribe());
        Ok((order, work))
    }

    /// Replays while the claim is held: values that are written after another replica has finished the restore would replace
    /// what clients have written since. What a node has received already cannot be called back.
    async fn run(
        &self,
        order: &ReplayOrder,
        unit: &ActiveUnit<RestoreUnits, Replaying>,
    ) -> Result<Replayed, UnitReplayError> {
        let before = order.progress.borrow().keys;
        let replayed = unit.while_held(|| self.replay(order)).await;
        let after = order.progress.borrow().keys;
        self.metrics.wrote(after.saturating_sub(before));
        replayed.unwrap_or(Err(UnitReplayError::Cancelled))?;
        Ok(Replayed::Loaded)
    }

    fn end_of(error: &UnitReplayError) -> ReplayEnd {
        if matches!(error, UnitReplayError::Cancelled) {
            ReplayEnd::Released
        } else if error.recovery() == Recovery::Never {
            ReplayEnd::Done(Replayed::Refused(telemetry::chain(error)))
        } else {
            ReplayEnd::Failed(telemetry::chain(error))
        }
    }
}
