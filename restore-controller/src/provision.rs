//! The RedisCluster that a restore creates: labelled and annotated, but not owned, so that it stays when the restore goes.

use common::kubernetes::call::{self, ApiError};
use crds::{
    ANNOTATION_RESTORE_UID, LABEL_MANAGED_BY, LABEL_RESTORED_BY, MANAGED_BY, RedisCluster,
    RedisRestore,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};

/// The longest value of a label.
const LONGEST_LABEL: usize = 63;

/// The cluster that the restore asks for; `None` if it names an existing one. Pure.
pub fn cluster_of(restore: &RedisRestore) -> Option<RedisCluster> {
    let new = restore.spec.target.new_cluster.as_ref()?;
    let mut labels = vec![(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned())];
    let name = restore.name_any();
    if name.len() <= LONGEST_LABEL {
        labels.push((LABEL_RESTORED_BY.to_owned(), name));
    }
    let uid = restore.uid().unwrap_or_default();
    let annotations = [(ANNOTATION_RESTORE_UID.to_owned(), uid)];
    let mut cluster = RedisCluster::new(&new.name, new.spec.clone());
    cluster.metadata = ObjectMeta {
        name: Some(new.name.clone()),
        namespace: restore.namespace(),
        labels: Some(labels.into_iter().collect()),
        annotations: Some(annotations.into()),
        ..ObjectMeta::default()
    };
    Some(cluster)
}

/// Creates it. One that exists already is examined in the next reconcile.
pub async fn create(client: &Client, cluster: &RedisCluster) -> Result<(), ApiError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let api: Api<RedisCluster> = Api::namespaced(client.clone(), &namespace);
    let what = format!("create RedisCluster {namespace}/{}", cluster.name_any());
    match call::write(what, api.create(&PostParams::default(), cluster)).await {
        Ok(_) | Err(ApiError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
