//! Long work beside the passes: reading the backup's documents, counting the target's keys. Each runs as a supervised task,
//! leaves its outcome in the planner's memory and wakes its restore.

use super::{Planner, PlannerError};
use crate::{
    plan::{Observed, Origin, Verified, origin, target_name},
    source::{Source, Walks},
    target,
};
use common::{
    access::{self, AccessError},
    kubernetes::background::{Background, Trouble},
};
use crds::RedisRestore;
use jiff::Timestamp;
use kube::{Client, ResourceExt};

impl Planner {
    /// Reads and proves manifest and indexes.
    pub(super) fn begin_examination(&self, restore: &RedisRestore, seen: &Observed) {
        let backup = seen.backup.clone().flatten();
        let Some(origin) = origin(restore, backup.as_deref()) else {
            return;
        };
        let (client, walks) = (self.runtime.client.clone(), self.walks.clone());
        let namespace = restore.namespace().unwrap_or_default();
        let examining = async move {
            let store = access::store(&client, &namespace, &origin.storage).await?;
            let source = Source::open(store, &origin).await?;
            Ok(source.examine(&origin, &walks).await?)
        };
        let memory = self.memory.clone();
        self.begin("examine", restore, examining, move |uid, state| {
            memory.source(uid, state);
        });
    }

    /// Counts the keys of the target slot by slot, and compares them with the backup's.
    pub(super) fn begin_verification(&self, restore: &RedisRestore) {
        let Some(origin) = origin(restore, None) else {
            return;
        };
        let verifying = verify(
            self.runtime.client.clone(),
            restore.namespace().unwrap_or_default(),
            target_name(restore).to_owned(),
            origin,
            self.walks.clone(),
        );
        let memory = self.memory.clone();
        self.begin("verify", restore, verifying, move |uid, state| {
            memory.verification(uid, state);
        });
    }

    /// Runs work beside the passes, unless it runs already.
    fn begin<T: Send + 'static>(
        &self,
        verb: &str,
        restore: &RedisRestore,
        work: impl Future<Output = Result<T, Trouble>> + Send + 'static,
        keep: impl Fn(&str, Background<T>) + Send + 'static,
    ) {
        let uid = restore.uid().unwrap_or_default();
        let name = format!("{verb} {uid}");
        if self.jobs.is_running(&name) {
            return;
        }
        let (namespace, object) = (restore.namespace().unwrap_or_default(), restore.name_any());
        let wake = self.wake.clone();
        let started = self.jobs.start(name, move |end| async move {
            let done = end.run_until_cancelled(Box::pin(work)).await;
            keep(&uid, Background::ended(done));
            wake.object(&namespace, &object);
            Ok::<(), PlannerError>(())
        });
        if let Err(error) = started {
            // The next pass tries again.
            tracing::debug!(%error, verb, "work beside the passes was not started");
        }
    }
}

/// Counts in the target, and where keys are missing, how many of the backup can have expired by then.
async fn verify(
    client: Client,
    namespace: String,
    cluster: String,
    origin: Origin,
    walks: Walks,
) -> Result<Verified, Trouble> {
    let pods = access::pods(&client, &namespace, &cluster).await;
    let pods = pods.map_err(AccessError::from)?;
    let addresses: Vec<_> = pods.into_keys().collect();
    let counted = target::count(&addresses).await.map_err(|error| Trouble {
        reason: "TargetNotSettled",
        message: format!("the keys of the target cannot be counted: {error}"),
        transient: true,
    })?;
    let now_ms = Timestamp::now().as_millisecond();
    let store = access::store(&client, &namespace, &origin.storage).await?;
    let source = Source::open(store, &origin).await?;
    Ok(source.compare(&counted, now_ms, &walks).await?)
}
