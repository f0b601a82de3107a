//! The data path of a backup: captures one shard for each unit that this replica takes.

mod error;
mod order;

pub use error::ShardError;

use crate::{
    capture::{CaptureError, CaptureProgress, CaptureRequest, CapturedShard, capture},
    metrics::BackupMetrics,
    units::{BackupUnits, CaptureEnd, ended, running},
};
use common::{
    access::{self, Buckets, PodNames},
    claims::{
        held::Work,
        worker::{ActiveUnit, DataPath},
    },
    storage::CompressionPool,
};
use crds::{OwnUser, RedisBackup, SourceRole};
use kube::Client;
use order::CaptureOrder;
use serde_json::{Map, Value};
use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a shard may be without a node that can be read: a failover takes the node timeout and a few seconds.
const SOURCE_PATIENCE: Duration = Duration::from_secs(20);

/// What a capture needs beside its order.
pub struct CapturePath {
    client: Client,
    buckets: Buckets,
    pool: CompressionPool,
    metrics: BackupMetrics,
}

impl CapturePath {
    /// One for all captures of the process.
    pub fn new(client: Client, buckets: Buckets, metrics: BackupMetrics) -> Self {
        Self {
            client,
            buckets,
            pool: CompressionPool::of_machine(),
            metrics,
        }
    }

    async fn prepare(&self, order: &CaptureOrder) -> Result<CaptureRequest, ShardError> {
        let store = self.buckets.open(&order.namespace, &order.storage).await?;
        let nodes = access::nodes(
            &self.client,
            &order.namespace,
            &order.cluster,
            OwnUser::Backup,
        )
        .await?;
        let seeds = nodes.seeds(order.cluster_uid.as_deref());
        let seeds = seeds.map_err(CaptureError::NoSeeds)?;
        order.pods.get_or_init(|| nodes.pods);
        Ok(CaptureRequest {
            seeds,
            slots: order.slots.clone(),
            prefer: order.prefer,
            patience: SOURCE_PATIENCE,
            store,
            layout: order.layout.clone(),
            backup_id: order.backup_id.clone(),
            shard: order.shard,
            attempt: order.attempt,
            compression: order.compression,
            pool: self.pool.clone(),
        })
    }
}

/// A capture at work.
pub struct Capturing {
    key: String,
    progress: watch::Receiver<CaptureProgress>,
    /// Set once the capture has read them.
    pods: Arc<OnceLock<PodNames>>,
}

impl Work for Capturing {
    type Done = Box<CapturedShard>;

    fn fields(&self, end: Option<&CaptureEnd>) -> Map<String, Value> {
        let progress = self.progress.borrow().clone();
        let pod = progress
            .source
            .and_then(|source| self.pods.get()?.get(&source.address.client()));
        let fields = running(&self.key, &progress, pod.map(String::as_str));
        match end {
            Some(end) => ended(fields, end),
            None => fields,
        }
    }
}

impl DataPath for CapturePath {
    type Kind = BackupUnits;
    type Order = CaptureOrder;
    type Work = Capturing;
    type Error = ShardError;

    const VERB: &'static str = "capture";
    const DONE: (&'static str, &'static str) = ("stored", "Stored");

    fn order(
        &self,
        backup: &RedisBackup,
        position: usize,
        attempt: i32,
    ) -> Result<(CaptureOrder, Capturing), ShardError> {
        let order = CaptureOrder::of(backup, position, attempt)?;
        let work = Capturing {
            key: order.key(),
            progress: order.progress.subscribe(),
            pods: Arc::clone(&order.pods),
        };
        Ok((order, work))
    }

    async fn run(
        &self,
        order: &CaptureOrder,
        unit: &ActiveUnit<BackupUnits, Capturing>,
    ) -> Result<Box<CapturedShard>, ShardError> {
        let preparing = Box::pin(self.prepare(order));
        let request = unit.cancel.run_until_cancelled(preparing).await;
        let request = request.ok_or(CaptureError::Cancelled)??;
        let mut progress = order.progress.subscribe();
        let mut capturing = Box::pin(capture_one(&request, order, &unit.cancel));
        // The reference that `wait_for` returns would keep the channel locked.
        let forked = async {
            progress
                .wait_for(|seen| seen.forked_at.is_some())
                .await
                .is_ok()
        };
        let forked = pin!(forked);
        let captured = tokio::select! {
            captured = &mut capturing => captured,
            _ = forked => {
                unit.report_now();
                capturing.await
            }
        }?;
        self.metrics.stored(&captured);
        Ok(Box::new(captured))
    }

    fn end_of(error: &ShardError) -> CaptureEnd {
        if error.is_cancelled() {
            CaptureEnd::Released
        } else {
            CaptureEnd::Failed(error.to_string())
        }
    }
}

/// Captures from a node of the preferred role, or else of the other.
async fn capture_one(
    request: &CaptureRequest,
    order: &CaptureOrder,
    cancel: &CancellationToken,
) -> Result<CapturedShard, CaptureError> {
    let first = Box::pin(capture(request, &order.progress, cancel)).await;
    match (first, order.otherwise) {
        (Err(CaptureError::NoSource(_)), Some(prefer)) => {
            let request = with_role(request, prefer);
            Box::pin(capture(&request, &order.progress, cancel)).await
        }
        (result, _) => result,
    }
}

fn with_role(request: &CaptureRequest, prefer: SourceRole) -> CaptureRequest {
    CaptureRequest {
        prefer,
        ..request.clone()
    }
}
