//! `create-backup`: creates one RedisBackup. Running it twice for the same minute creates one.

use crate::{
    arguments::CreateBackup,
    schedule::{ScheduledBackup, backup, scheduled_minute},
};
use common::kubernetes::call::{self, ApiError};
use crds::RedisBackup;
use jiff::Timestamp;
use kube::{Api, Client, ResourceExt, api::PostParams};

/// Creates the backup that is due. One of that name exists already: an earlier try of the Job made it.
pub async fn create(client: Client, order: &CreateBackup, now: Timestamp) -> Result<(), ApiError> {
    let wanted = backup(&ScheduledBackup {
        namespace: order.namespace.clone(),
        cluster: order.cluster.clone(),
        schedule: order.schedule.clone(),
        storage_name: order.storage_name.clone(),
        deletion_policy: order.deletion_policy.into(),
        due: scheduled_minute(order.job_name.as_deref(), now),
    });
    let name = wanted.name_any();
    let api: Api<RedisBackup> = Api::namespaced(client, &order.namespace);
    let what = format!("create RedisBackup {}/{name}", order.namespace);
    match call::write(what, api.create(&PostParams::default(), &wanted)).await {
        Ok(_) => tracing::info!(name, "RedisBackup created"),
        Err(ApiError::AlreadyExists { .. }) => {
            tracing::info!(name, "the RedisBackup exists already");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
