//! Keeps the objects of schedules as [`crate::schedule`] wants them, and writes the condition `SchedulesAccepted` of the RedisCluster.
//! Objects of other owners are neither changed nor deleted.
//!
//! A RedisCluster's status changes often and its schedules hardly ever: a reconcile does nothing while the generation is the one
//! that was applied, but for a look every ten minutes where there are schedules.

use crate::schedule::{self, Identity, Refused, SCHEDULES_ACCEPTED, Wanted, build, selector};
use common::{
    errors::{Classified, ErrorClass, Recovery},
    kubernetes::{
        apply::{Applier, Child},
        call::{self, ApiError},
        conditions::ConditionUpdate,
        controller::Reconcile,
        expectations::{Expectations, OwnerKey},
        leases::{Leadership, NotLeader},
        outcome::Outcome,
        status,
    },
    runtime::Runtime,
};
use crds::RedisCluster;
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::CronJob, core::v1::ServiceAccount, rbac::v1::RoleBinding};
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often objects of schedules are looked at though nothing was seen to change.
const LOOK_AGAIN: Duration = Duration::from_mins(10);
/// How soon after the API server refused one of them: a quota or a policy may have been changed.
const REFUSED: Duration = Duration::from_mins(1);

/// Keeps the objects of schedules.
pub struct Schedules {
    client: Client,
    applier: Applier,
    manager: &'static str,
    leadership: Leadership,
    image: Option<String>,
    applied: Mutex<HashMap<String, Applied>>,
}

struct Applied {
    namespace: String,
    name: String,
    generation: Option<i64>,
    at: Instant,
    /// `None`: only when the generation changes.
    again: Option<Duration>,
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
}

impl Classified for ScheduleError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
        }
    }
}

impl Schedules {
    /// `image` is what the CronJobs' pods run.
    pub fn new(runtime: &Runtime, leadership: Leadership, image: Option<String>) -> Self {
        Self {
            client: runtime.client.clone(),
            // Everything is listed live before it is written.
            applier: Applier::new(
                runtime.client.clone(),
                runtime.program.name,
                None::<Arc<Expectations>>,
            ),
            manager: runtime.program.name,
            leadership,
            image,
            applied: Mutex::default(),
        }
    }

    /// How long until the objects are looked at again; `None`: now.
    fn next_look(&self, cluster: &RedisCluster) -> Option<Outcome> {
        let applied = self.lock();
        let known = applied.get(&cluster.uid().unwrap_or_default())?;
        if known.generation != cluster.metadata.generation {
            return None;
        }
        match known.again {
            None => Some(Outcome::finished()),
            Some(again) => match again.checked_sub(known.at.elapsed()) {
                Some(left) if !left.is_zero() => Some(Outcome::settled(left)),
                Some(_) | None => None,
            },
        }
    }

    /// Returns the schedules that are not in effect.
    async fn apply(
        &self,
        cluster: &RedisCluster,
        wanted: Wanted,
    ) -> Result<Vec<Refused>, ScheduleError> {
        let owner = OwnerKey::of(cluster);
        let Wanted {
            identity,
            cron_jobs,
            mut refused,
        } = wanted;
        let name = cluster.name_any();
        let kept: Vec<String> = refused
            .iter()
            .map(|refused| schedule::base_name(&name, &refused.schedule))
            .collect();
        let cron_jobs = Box::pin(self.make::<CronJob>(cluster, &owner, cron_jobs, &kept));
        // The identity comes before the CronJobs and goes after them, so that no pod starts without its right, nor under an
        // account of another owner.
        let refusals = if identity.is_some() {
            Box::pin(self.identify(cluster, &owner, identity)).await?;
            cron_jobs.await?
        } else {
            let refusals = cron_jobs.await?;
            Box::pin(self.identify(cluster, &owner, identity)).await?;
            refusals
        };
        let refusals = refusals.iter();
        refused.extend(refusals.map(|(cron_job, error)| Refused::by_server(cron_job, error)));
        Ok(refused)
    }

    async fn identify(
        &self,
        cluster: &RedisCluster,
        owner: &OwnerKey,
        identity: Option<Identity>,
    ) -> Result<(), ScheduleError> {
        let (accounts, bindings) = match identity {
            Some(identity) => (vec![identity.service_account], vec![identity.role_binding]),
            None => Default::default(),
        };
        Box::pin(self.make_all::<ServiceAccount>(cluster, owner, accounts)).await?;
        for binding in &bindings {
            Box::pin(self.delete_binding_to_another_role(owner, binding)).await?;
        }
        Box::pin(self.make_all::<RoleBinding>(cluster, owner, bindings)).await
    }

    async fn delete_binding_to_another_role(
        &self,
        owner: &OwnerKey,
        wanted: &RoleBinding,
    ) -> Result<(), ScheduleError> {
        let Some(found) = self.applier.find(wanted).await? else {
            return Ok(());
        };
        if schedule::grants_another_role(&found, wanted) && is_controlled_by(&found, owner) {
            self.leadership.ensure()?;
            self.applier.delete(owner, &found).await?;
        }
        Ok(())
    }

    /// [`Self::make`], where the first refusal is the error.
    async fn make_all<K: Child>(
        &self,
        cluster: &RedisCluster,
        owner: &OwnerKey,
        wanted: Vec<K>,
    ) -> Result<(), ScheduleError> {
        let refusals = Box::pin(self.make(cluster, owner, wanted, &[])).await?;
        match refusals.into_iter().next() {
            Some((_, error)) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Applies what is wanted of one kind and deletes what else of it is the cluster's, but for the `kept` names. An object that is
    /// refused does not stop the others: the refusals are returned.
    async fn make<K: Child>(
        &self,
        cluster: &RedisCluster,
        owner: &OwnerKey,
        wanted: Vec<K>,
        kept: &[String],
    ) -> Result<Vec<(K, ApiError)>, ScheduleError> {
        let namespace = cluster.namespace().unwrap_or_default();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let parameters = ListParams::default().labels(&selector(&cluster.name_any()));
        let what = format!("list the {}s of schedules in {namespace}", K::kind(&()));
        let observed = call::read(what, api.list(&parameters)).await?.items;
        self.leadership.ensure()?;
        let is_wanted = |object: &K| {
            let mut names = wanted.iter().map(ResourceExt::name_any);
            names.any(|name| name == object.name_any()) || kept.contains(&object.name_any())
        };
        for object in &observed {
            if !is_wanted(object) && is_controlled_by(object, owner) {
                self.applier.delete(owner, object).await?;
            }
        }
        let mut refusals = Vec::new();
        for object in wanted {
            let made = Box::pin(self.make_one(owner, object.clone(), &observed)).await;
            match made {
                Ok(()) => {}
                Err(error) if needs_a_person(&error) => refusals.push((object, error)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(refusals)
    }

    /// An object of that name that is not listed may have another owner: applying it unseen would take it over.
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

    /// Returns the condition and when to look again.
    async fn put_into_effect(
        &self,
        cluster: &RedisCluster,
    ) -> Result<(Option<ConditionUpdate>, Option<Duration>), ScheduleError> {
        let plan = cluster.spec.backup.as_ref();
        if plan.is_none_or(|plan| plan.schedules.is_empty()) {
            // What is to go was made for an earlier spec.
            if cluster.metadata.generation != Some(1) {
                self.apply(cluster, Wanted::default()).await?;
            }
            return Ok((None, None));
        }
        let Some(image) = &self.image else {
            return Ok((Some(schedule::no_image()), Some(LOOK_AGAIN)));
        };
        let wanted = build(cluster, image);
        let invalid = wanted.refused.len();
        let refused = self.apply(cluster, wanted).await?;
        let (namespace, name) = (cluster.namespace(), cluster.name_any());
        for Refused { schedule, why } in &refused {
            // The condition may show it shortened.
            tracing::warn!(
                namespace,
                name,
                schedule,
                why,
                "a schedule is not in effect"
            );
        }
        let by_server = refused.len() > invalid;
        let again = if by_server { REFUSED } else { LOOK_AGAIN };
        Ok((schedule::condition(cluster, &refused), Some(again)))
    }

    async fn write_condition(
        &self,
        cluster: &RedisCluster,
        update: Option<ConditionUpdate>,
    ) -> Result<(), ApiError> {
        let namespace = cluster.namespace().unwrap_or_default();
        let api: Api<RedisCluster> = Api::namespaced(self.client.clone(), &namespace);
        let condition = (SCHEDULES_ACCEPTED, update);
        status::write_condition(&api, cluster, self.manager, condition, Timestamp::now()).await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Applied>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a person has to change something.
fn needs_a_person(error: &ApiError) -> bool {
    error.class().recovery() == Recovery::Later
}

fn is_controlled_by<K: Child>(object: &K, owner: &OwnerKey) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|known| known.controller == Some(true) && known.uid == owner.uid)
}

impl Reconcile<RedisCluster> for Schedules {
    type Error = ScheduleError;

    async fn reconcile(&self, cluster: Arc<RedisCluster>) -> Result<Outcome, ScheduleError> {
        if cluster.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::finished());
        }
        if let Some(outcome) = self.next_look(&cluster) {
            return Ok(outcome);
        }
        let (update, again, refusal) = match Box::pin(self.put_into_effect(&cluster)).await {
            Ok((update, again)) => (update, again, None),
            Err(ScheduleError::Api(error)) if needs_a_person(&error) => {
                let (kind, reason) = (SCHEDULES_ACCEPTED, error.reason());
                let update = ConditionUpdate::no(kind, reason, error.to_string());
                (Some(update), Some(REFUSED), Some(error))
            }
            Err(error) => return Err(error),
        };
        self.write_condition(&cluster, update).await?;
        let applied = Applied {
            namespace: cluster.namespace().unwrap_or_default(),
            name: cluster.name_any(),
            generation: cluster.metadata.generation,
            at: Instant::now(),
            again,
        };
        self.lock()
            .insert(cluster.uid().unwrap_or_default(), applied);
        match refusal {
            Some(error) => Err(error.into()),
            None => Ok(again.map_or_else(Outcome::finished, Outcome::settled)),
        }
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.lock()
            .retain(|_, known| known.namespace != namespace || known.name != name);
    }
}
