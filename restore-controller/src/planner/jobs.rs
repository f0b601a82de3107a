//! Jobs of a restore: reading the backup's documents, counting the target's keys.

use super::{RestorePlanner, RestorePlanning};
use crate::{
    plan::{Examined, Observed, Origin, Verified, origin, target_name},
    source::{Source, Walks},
    target,
};
use common::{
    access::{self, AccessError, Buckets},
    claims::jobs::{JobFailure, JobRecord, JobResult},
    cluster::slot_map::NotSettled,
};
use crds::{OwnUser, RedisRestore};
use jiff::Timestamp;
use kube::{Client, ResourceExt};
use std::sync::Arc;

/// How the jobs of one restore ended.
#[derive(Default)]
pub struct RestoreJobs {
    pub(super) examination: JobRecord<Arc<Examined>>,
    pub(super) verification: JobRecord<Verified>,
}

impl RestorePlanning {
    /// Reads and verifies manifest and indexes.
    pub(super) fn start_examination(
        &self,
        planner: &RestorePlanner,
        restore: &RedisRestore,
        seen: &Observed,
    ) {
        let backup = seen.backup.clone().flatten();
        let Some(origin) = origin(restore, backup.as_deref()) else {
            return;
        };
        let buckets = self.buckets.clone();
        let namespace = restore.namespace().unwrap_or_default();
        let walks = self.walks.of(&namespace);
        let examining = async move {
            let store = buckets.open(&namespace, &origin.storage).await?;
            let source = Source::open(store, &origin).await?;
            Ok(source.examine(&origin, &walks).await?)
        };
        planner.start_job("examine", restore, examining, |jobs| &mut jobs.examination);
    }

    /// Counts the keys of the target slot by slot, and compares them with the backup's.
    pub(super) fn start_verification(&self, planner: &RestorePlanner, restore: &RedisRestore) {
        let Some(origin) = origin(restore, None) else {
            return;
        };
        let namespace = restore.namespace().unwrap_or_default();
        let walks = self.walks.of(&namespace);
        let cluster = target_name(restore).to_owned();
        let client = planner.runtime.client.clone();
        let verifying = verify(
            client,
            self.buckets.clone(),
            namespace,
            cluster,
            origin,
            walks,
        );
        planner.start_job("verify", restore, verifying, |jobs| &mut jobs.verification);
    }
}

/// Counts in the target, and where keys are missing, how many of the backup can have expired by then.
async fn verify(
    client: Client,
    buckets: Buckets,
    namespace: String,
    cluster: String,
    origin: Origin,
    walks: Walks,
) -> JobResult<Verified> {
    let nodes = access::nodes(&client, &namespace, &cluster, OwnUser::Restore).await;
    let nodes = nodes.map_err(AccessError::from)?;
    let not_counted = |error: NotSettled| JobFailure {
        reason: "TargetNotSettled",
        message: format!("the keys of the target cannot be counted: {error}"),
        transient: true,
    };
    let seeds = nodes
        .seeds(None)
        .map_err(|error| not_counted(error.into()))?;
    let counted = target::count(&seeds).await.map_err(not_counted)?;
    let now_ms = Timestamp::now().as_millisecond();
    let store = buckets.open(&namespace, &origin.storage).await?;
    let source = Source::open(store, &origin).await?;
    Ok(source.compare(&counted, now_ms, &walks).await?)
}
