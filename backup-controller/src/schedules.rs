//! Keeps the objects of schedules as [`crate::schedule`] wants them.
//!
//! A RedisCluster's status changes often and its schedules hardly ever: a pass does nothing while the generation is the one
//! that was applied, but for a look every ten minutes where there are schedules.

use crate::schedule::{Wanted, build, selector};
use common::kubernetes::errors::{Classified, ErrorClass};
use common::{
    kubernetes::{
        apply::{Applier, Child},
        call::{self, ApiError},
        controller::Reconcile,
        expectations::{Expectations, OwnerKey},
        leases::{Leadership, NotLeader},
        outcome::Outcome,
    },
    runtime::Runtime,
};
use crds::RedisCluster;
use k8s_openapi::api::{
    batch::v1::CronJob,
    core::v1::ServiceAccount,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often objects of schedules are looked at though nothing was seen to change.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// Keeps the objects of schedules.
pub struct Schedules {
    client: Client,
    applier: Applier,
    leadership: Leadership,
    image: Option<String>,
    applied: Mutex<HashMap<String, Applied>>,
}

struct Applied {
    namespace: String,
    name: String,
    generation: Option<i64>,
    at: Instant,
    empty: bool,
}

/// Why the objects of schedules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica leads now.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// No image is known.
    #[error(
        "RedisCluster {0} has backup schedules, but the controller was started without --image: it does not know what their pods run"
    )]
    NoImage(String),
}

impl Classified for ScheduleError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
            Self::NoImage(_) => ErrorClass::InvalidSpec,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
            Self::NoImage(_) => "NoImage",
        }
    }
}

impl Schedules {
    /// `image` is what the CronJobs' pods run.
    pub fn new(runtime: &Runtime, leadership: Leadership, image: Option<String>) -> Self {
        Self {
            client: runtime.client.clone(),
            applier: Applier::new(
                runtime.client.clone(),
                runtime.program.name,
                Arc::new(Expectations::default()),
            ),
            leadership,
            image,
            applied: Mutex::default(),
        }
    }

    fn is_due(&self, cluster: &RedisCluster) -> bool {
        let applied = self.lock();
        applied
            .get(&cluster.uid().unwrap_or_default())
            .is_none_or(|known| {
                known.generation != cluster.metadata.generation
                    || (!known.empty && known.at.elapsed() >= LOOK_AGAIN)
            })
    }

    async fn apply(&self, cluster: &RedisCluster, wanted: Wanted) -> Result<(), ScheduleError> {
        let owner = OwnerKey::of(cluster);
        let Wanted {
            identity,
            cron_jobs,
        } = wanted;
        let (accounts, roles, bindings) = match identity {
            Some(identity) => (
                vec![identity.service_account],
                vec![identity.role],
                vec![identity.role_binding],
            ),
            None => Default::default(),
        };
        // The identity first, so that no pod starts without its right; superfluous CronJobs go before the identity does.
        Box::pin(self.make::<ServiceAccount>(cluster, &owner, accounts)).await?;
        Box::pin(self.make::<Role>(cluster, &owner, roles)).await?;
        Box::pin(self.make::<RoleBinding>(cluster, &owner, bindings)).await?;
        Box::pin(self.make::<CronJob>(cluster, &owner, cron_jobs)).await
    }

    /// Applies what is wanted of one kind and deletes the rest of it.
    async fn make<K: Child>(
        &self,
        cluster: &RedisCluster,
        owner: &OwnerKey,
        wanted: Vec<K>,
    ) -> Result<(), ScheduleError> {
        let namespace = cluster.namespace().unwrap_or_default();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let parameters = ListParams::default().labels(&selector(&cluster.name_any()));
        let what = format!("list the {}s of schedules in {namespace}", K::kind(&()));
        let observed = call::read(what, api.list(&parameters)).await?.items;
        self.leadership.ensure()?;
        for object in observed.iter().filter(|object| {
            wanted
                .iter()
                .all(|wanted| wanted.name_any() != object.name_any())
        }) {
            self.applier.delete(owner, object).await?;
        }
        for object in wanted {
            let name = object.name_any();
            let known = observed.iter().find(|observed| observed.name_any() == name);
            self.applier.apply(owner, object, known).await?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Applied>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconcile<RedisCluster> for Schedules {
    type Error = ScheduleError;

    async fn reconcile(&self, cluster: Arc<RedisCluster>) -> Result<Outcome, ScheduleError> {
        if cluster.metadata.deletion_timestamp.is_some() || !self.is_due(&cluster) {
            return Ok(Outcome::settled(LOOK_AGAIN));
        }
        let has_schedules = cluster
            .spec
            .backup
            .as_ref()
            .is_some_and(|plan| !plan.schedules.is_empty());
        let wanted = match (&self.image, has_schedules) {
            (Some(image), true) => build(&cluster, image),
            (None, true) => return Err(ScheduleError::NoImage(cluster.name_any())),
            (_, false) => Wanted::default(),
        };
        Box::pin(self.apply(&cluster, wanted)).await?;
        let applied = Applied {
            namespace: cluster.namespace().unwrap_or_default(),
            name: cluster.name_any(),
            generation: cluster.metadata.generation,
            at: Instant::now(),
            empty: !has_schedules,
        };
        self.lock()
            .insert(cluster.uid().unwrap_or_default(), applied);
        Ok(Outcome::settled(LOOK_AGAIN))
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.lock()
            .retain(|_, known| known.namespace != namespace || known.name != name);
    }
}
