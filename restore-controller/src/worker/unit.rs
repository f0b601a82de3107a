//! One unit: from the claim to the last key.

use super::Worker;
use crate::{
    plan::{Origin, origin, target_name},
    replay::{Progress, ReplayError, ReplayRequest, Window, read_owners, replay},
    source::{Source, SourceError},
};
use common::{
    access::{self, AccessError},
    kubernetes::{
        call::ApiError,
        errors::{Classified, ErrorClass},
    },
};
use crds::RedisRestore;
use kube::ResourceExt;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// How long the target may take no key before the attempt has failed: a failover takes the node timeout and some seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long to wait before a target that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One unit of a restore, as it was when it was taken.
#[derive(Clone, Debug)]
pub(super) struct Order {
    namespace: String,
    name: String,
    cluster: String,
    origin: Origin,
    shard: i32,
    from: Progress,
}

/// Why a unit was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The status does not say what it has to.
    #[error("the status of the restore is not as the controller wrote it: {0}")]
    Status(&'static str),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The bucket.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The backup.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The replay itself.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// It was told to stop.
    #[error("it was stopped")]
    Cancelled,
}

impl UnitError {
    /// Whether another attempt would fail in the same way.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Status(_) => true,
            Self::Api(_) | Self::Access(_) | Self::Cancelled => false,
            Self::Source(error) => error.is_lasting(),
            Self::Replay(error) => error.is_lasting(),
        }
    }
}

impl Classified for UnitError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Status(_) => ErrorClass::Bug,
            Self::Api(error) => error.class(),
            Self::Access(error) if error.is_transient() => ErrorClass::Transient,
            Self::Replay(error) if error.is_transient() => ErrorClass::Transient,
            Self::Source(error) if error.is_transient() => ErrorClass::Transient,
            Self::Access(_) | Self::Source(_) | Self::Replay(_) => ErrorClass::InvalidSpec,
            Self::Cancelled => ErrorClass::Fenced,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Status(_) => "StatusMalformed",
            Self::Api(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::Source(error) => error.reason(),
            Self::Replay(error) => error.reason(),
            Self::Cancelled => "Cancelled",
        }
    }
}

impl Order {
    pub(super) fn of(restore: &RedisRestore, position: usize) -> Result<Self, UnitError> {
        let status = restore.status.as_ref();
        let unit = status.and_then(|status| status.units.get(position));
        let unit = unit.ok_or(UnitError::Status("no such unit"))?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Self {
            namespace: restore.namespace().unwrap_or_default(),
            name: restore.name_any(),
            cluster: target_name(restore).to_owned(),
            origin: origin(restore, None).ok_or(UnitError::Status("no manifest"))?,
            shard: unit.index,
            from: Progress {
                block: count(unit.block),
                keys: count(unit.keys),
                expired: count(unit.expired),
                foreign: 0,
            },
        })
    }

    /// The restore's namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The restore's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same, from the place on that was reached.
    pub(super) fn going_on(&self, from: Progress) -> Self {
        Self {
            from,
            ..self.clone()
        }
    }

    /// How far an earlier attempt came.
    pub(super) fn from(&self) -> Progress {
        self.from
    }
}

/// Replays a unit. Dropping the future stops it.
pub(super) async fn run(
    worker: &Worker,
    order: &Order,
    progress: &watch::Sender<Progress>,
) -> Result<Progress, UnitError> {
    let store = access::store(
        &worker.runtime.client,
        &order.namespace,
        &order.origin.storage,
    )
    .await?;
    let seeds = seeds(worker, order).await?;
    let source = Source::open(store, &order.origin).await?;
    let (record, index) = source.shard(order.shard).await?;
    let request = ReplayRequest {
        key: source.key(record),
        slots: record.slots.iter().copied().collect(),
        index: Arc::new(index),
        seeds,
        from: order.from,
        window: Window::default(),
        patience: PATIENCE,
    };
    let pool = worker.pool.clone();
    let done = replay(source.store().clone(), pool, &request, progress).await?;
    if done.foreign > 0 {
        tracing::warn!(
            shard = order.shard,
            keys = done.foreign,
            "keys were left out: they lie in slots that their shard did not own when it was backed up"
        );
    }
    Ok(done)
}

/// Where the target's nodes are; waits until one of them says who owns the slots. Pods that are all replaced have new
/// addresses, so they are asked for again.
async fn seeds(worker: &Worker, order: &Order) -> Result<Vec<SocketAddr>, UnitError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let pods = access::pods(&worker.runtime.client, &order.namespace, &order.cluster).await?;
        let seeds: Vec<_> = pods.into_keys().collect();
        match read_owners(&seeds, None).await {
            Ok(_) => return Ok(seeds),
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Err(error) => tracing::info!(%error, "the target is asked again in a moment"),
        }
        sleep(ASK_AGAIN).await;
    }
}
