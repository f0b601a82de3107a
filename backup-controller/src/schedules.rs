//! Keeps the objects of schedules as [`crate::schedule`] wants them. What somebody else has made is neither changed nor deleted.
//!
//! A RedisCluster's status changes often and its schedules hardly ever: a pass does nothing while the generation is the one
//! that was applied, but for a look every ten minutes where there are schedules.

use crate::schedule::{Identity, Wanted, build, selector};
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
        // The identity comes before the CronJobs and goes after them, so that no pod starts without its right, nor under an
        // account that is somebody else's.
        if identity.is_some() {
            Box::pin(self.identify(cluster, &owner, identity)).await?;
            Box::pin(self.make::<CronJob>(cluster, &owner, cron_jobs)).await
        } else {
            Box::pin(self.make::<CronJob>(cluster, &owner, cron_jobs)).await?;
            Box::pin(self.identify(cluster, &owner, identity)).await
        }
    }

    async fn identify(
        &self,
        cluster: &RedisCluster,
        owner: &OwnerKey,
        identity: Option<Identity>,
    ) -> Result<(), ScheduleError> {
        let (accounts, roles, bindings) = match identity {
            Some(identity) => (
                vec![identity.service_account],
                vec![identity.role],
                vec![identity.role_binding],
            ),
            None => Default::default(),
        };
        Box::pin(self.make::<ServiceAccount>(cluster, owner, accounts)).await?;
        Box::pin(self.make::<Role>(cluster, owner, roles)).await?;
        Box::pin(self.make::<RoleBinding>(cluster, owner, bindings)).await
    }

    /// Applies what is wanted of one kind and deletes what else of it is the cluster's. An object that is refused does not stop
    /// the others; the first refusal is the error.
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
        let is_wanted = |object: &K| {
            let mut names = wanted.iter().map(ResourceExt::name_any);
            names.any(|name| name == object.name_any())
        };
        for object in &observed {
            if !is_wanted(object) && is_controlled_by(object, owner) {
                self.applier.delete(owner, object).await?;
            }
        }
        let mut refusal = None;
        for object in wanted {
            match Box::pin(self.make_one(owner, object, &observed)).await {
                Err(error @ (ApiError::Invalid { .. } | ApiError::Foreign { .. })) => {
                    refusal.get_or_insert(error);
                }
                result => result?,
            }
        }
        refusal.map_or(Ok(()), |error| Err(error.into()))
    }

    /// An object of that name that is not listed may be somebody else's: applying it unseen would take it over.
    async fn make_one<K: Child>(
        &self,
        owner: &OwnerKey,
        wanted: K,
        listed: &[K],
    ) -> Result<(), ApiError> {
        let name = wanted.name_any();
        let found = match listed.iter().find(|known| known.name_any() == name) {
            Some(known) => Some(known.clone()),
            None => Box::pin(self.applier.find(&wanted)).await?,
        };
        self.applier.apply(owner, wanted, found.as_ref()).await?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Applied>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_controlled_by<K: Child>(object: &K, owner: &OwnerKey) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|known| known.controller == Some(true) && known.uid == owner.uid)
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
