//! What is wanted, and what the caches show of it: everything that a decision needs besides the answers of the nodes.

use super::failures::Failures;
use crate::{
    build::redis_conf,
    certificates::{self, CertificatesEvidence, ClusterCertificates},
    children,
    context::Context,
    decision::{Decision, Goal, decide},
    errors::ReconcileError,
    fencing::LastSeenNodes,
    hibernate,
    observe::{self, Observed},
    pods::{self, Mounted, Pods},
    redis::member::{ClientSetting, Wanted},
    rollout::{self, written},
    sets::ExistingSet,
    settings::{assess::SettingsGoal, template::NamedTemplates, tracker::ClusterAnswers},
    status,
    support::VersionSupport,
    trials::{self, Trial},
    users::{self, ClusterUsers, UsersEvidence},
    validate::{InvalidSpec, Shape, ValidatedCluster, validate},
    volume_claims,
    volumes::Claims,
};
use common::cluster::endpoint::NodeAccess;
use crds::{RedisCluster, RedisVersion, VOLUME_CERTIFICATES, VOLUME_USERS};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, runtime::reflector::ObjectRef};
use std::{collections::BTreeSet, sync::Arc};

/// What is known before the nodes are asked.
pub(super) struct Inputs {
    /// As the cache shows it, or the API server where the cache is behind.
    pub(super) object: Arc<RedisCluster>,
    /// What repairing the nodes needs. It hibernates only once it may.
    pub(super) shape: Shape,
    /// Whether the spec asks for hibernation: nothing else is changed then.
    pub(super) is_to_hibernate: bool,
    /// What a hibernation waits for.
    pub(super) awaited: Option<String>,
    /// What is wanted besides; none where the spec is wrong.
    pub(super) cluster: Option<ValidatedCluster>,
    /// The trial of its configuration.
    pub(super) trial: Trial,
    /// The settings that its servers are to have.
    pub(super) settings: Option<SettingsGoal>,
    /// Names of the settings that every server is asked for.
    pub(super) names: BTreeSet<String>,
    /// Where nodes were last seen.
    pub(super) last_seen: LastSeenNodes,
    /// What is wanted of the Redis half.
    pub(super) wanted: Wanted,
    /// The StatefulSets that exist.
    pub(super) sets: Vec<ExistingSet>,
    /// Shards whose StatefulSet makes pods as they are wanted.
    written: BTreeSet<i32>,
    /// The volume claims that exist.
    pub(super) claims: Claims,
    /// The pods that the cache shows.
    pub(super) pods: Pods,
    /// The users of the servers.
    pub(super) users: ClusterUsers,
    /// The certificates of the servers.
    pub(super) certificates: ClusterCertificates,
    moving: bool,
    answers: ClusterAnswers,
}

impl Inputs {
    /// Reads everything. What is wrong with the spec is kept among the failures.
    pub(super) async fn read(
        context: &Context,
        object: Arc<RedisCluster>,
        mut shape: Shape,
        failures: &mut Failures,
    ) -> Result<Self, ReconcileError> {
        let (namespace, name) = (shape.namespace.clone(), shape.name.clone());
        let place = (namespace.as_str(), name.as_str());
        let mut cluster = failures.keep(validated(context, &object));
        let services = context.caches.services.of(&namespace, &name);
        shape.access = shape.access.found(&name, &services);
        let pods = observe::cached(&context.caches.pods, &shape);
        let sets = children::existing_sets(context, &shape);
        let templates = children::templates(context, &shape);
        let is_new = sets.is_empty() && pods.is_empty();
        let never_ran = is_new && !status::formed_before(&object);
        let evidence = UsersEvidence {
            is_new: never_ran,
            mounts: of_pods(&pods, VOLUME_USERS).any(|mounts| mounts),
            templates: Mounted::of(of_templates(&templates, VOLUME_USERS)),
        };
        let users = cluster_users(context, (&object, &shape), evidence, failures).await?;
        let mounted = of_pods(&pods, VOLUME_CERTIFICATES);
        let evidence = CertificatesEvidence {
            is_new: never_ran,
            mounted: Mounted::of(mounted.chain(of_templates(&templates, VOLUME_CERTIFICATES))),
        };
        let certificates = cluster_certificates(context, &object, (&shape, evidence)).await;
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let last = context.certificates.last(place, uid);
        let certificates = match (certificates, last) {
            (Ok(certificates), _) => certificates,
            // What cannot be read just now is as it was.
            (Err(error), Some(last)) => {
                failures.push(error);
                last
            }
            // Without a certificate that can be used. Servers that run do so without one; of a new cluster no pod is created.
            (Err(error), None) if evidence.mounted == Mounted::None => {
                failures.push(error);
                cluster = cluster.filter(|_| !is_new);
                ClusterCertificates::default()
            }
            (Err(error), None) => return Err(error),
        };
        let encryption = certificates.encryption();
        shape.encryption = encryption;
        let access = NodeAccess {
            transport: certificates.transport.clone(),
            login: users.login.clone(),
            ..NodeAccess::default()
        };
        context.connections.reach(place, access);
        cluster = match cluster {
            Some(cluster) => failures.keep(cluster.mounting(users.are_mounted(), encryption)),
            None => None,
        };
        let trial = trials::gate(context, &shape, cluster.as_mut(), (templates, &pods));
        if let Some(refused) = trial.decision.gate.error().cloned() {
            failures.push(refused);
        }
        let settings = cluster.as_ref().map(|cluster| {
            SettingsGoal::of(cluster, redis_conf(cluster), trial.configurations.clone())
        });
        let claims = volume_claims::cached(context, &shape);
        let wanted = wanted(context, &object, (&shape, cluster.as_ref()), &pods, &claims);
        let mut awaited = None;
        let mut hibernates = shape.hibernate;
        if shape.hibernate {
            // Without a valid spec nothing can be stopped, and backups are not to wait for it. A configuration that is refused is no matter.
            let mut may_stop = false;
            if cluster.is_some() {
                let asked = hibernate::waits_for(context, &object, &shape, (&sets, &pods)).await;
                let answer = failures.keep(asked);
                may_stop = answer.as_ref().is_some_and(Option::is_none);
                awaited = answer.flatten();
            }
            hibernates = may_stop || pods.is_empty();
        }
        let written = cluster
            .as_ref()
            .map(|cluster| written(cluster, &trial.name, &trial.templates));
        let names = settings.as_ref().map(|settings| settings.names(&pods));
        let mut names = names.unwrap_or_default();
        names.extend(certificates.settings());
        let given = ClientSetting::EndpointType.name();
        names.extend(shape.access.is_used().then(|| given.to_owned()));
        Ok(Self {
            is_to_hibernate: shape.hibernate,
            awaited,
            names,
            last_seen: status::last_seen_before(&object),
            moving: context.resharding.is_moving(place),
            answers: context.settings.answers(place),
            shape: Shape {
                hibernate: hibernates,
                ..shape
            },
            object,
            cluster,
            trial,
            settings,
            wanted,
            sets,
            written: written.unwrap_or_default(),
            claims,
            pods,
            users,
            certificates,
        })
    }

    /// Namespace and name.
    pub(super) fn place(&self) -> (&str, &str) {
        (&self.shape.namespace, &self.shape.name)
    }

    /// What decisions are made for.
    pub(super) fn goal(&self) -> Goal<'_> {
        Goal {
            shape: &self.shape,
            cluster: self.cluster.as_ref(),
            wanted: &self.wanted,
            sets: &self.sets,
            written: &self.written,
            moving: self.moving,
            settings: self.settings.as_ref(),
        }
    }

    /// What follows from what was observed.
    pub(super) fn decide(&self, observed: Observed) -> Decision {
        decide(&self.goal(), observed, &self.answers, Timestamp::now())
    }
}

/// Whether each pod starts with the Secret of a volume.
fn of_pods(pods: &Pods, volume: &str) -> impl Iterator<Item = bool> {
    pods.values().map(move |pod| pods::mounts(pod, volume))
}

/// The same of templates.
fn of_templates(templates: &NamedTemplates, volume: &str) -> impl Iterator<Item = bool> {
    let templates = templates.values();
    templates.map(move |template| template.mounts(volume))
}

/// What cannot be read just now is as it was.
async fn cluster_users(
    context: &Context,
    (object, shape): (&RedisCluster, &Shape),
    evidence: UsersEvidence,
    failures: &mut Failures,
) -> Result<ClusterUsers, ReconcileError> {
    let owner = object.controller_owner_ref(&());
    let owner = owner.ok_or(InvalidSpec::Incomplete("uid"))?;
    match users::read(context, object, shape, owner, evidence).await {
        Ok(users) => Ok(users),
        Err(error) => {
            let error = ReconcileError::from(error);
            let known = users::remembered(context, object, shape);
            let Some(known) = known else {
                return Err(error);
            };
            failures.push(error);
            Ok(known)
        }
    }
}

async fn cluster_certificates(
    context: &Context,
    object: &RedisCluster,
    found: (&Shape, CertificatesEvidence),
) -> Result<ClusterCertificates, ReconcileError> {
    let owner = object.controller_owner_ref(&());
    let owner = owner.ok_or(InvalidSpec::Incomplete("uid"))?;
    Ok(certificates::read(context, object, found, owner).await?)
}

fn wanted(
    context: &Context,
    object: &RedisCluster,
    (shape, cluster): (&Shape, Option<&ValidatedCluster>),
    pods: &Pods,
    claims: &Claims,
) -> Wanted {
    let place = (shape.namespace.as_str(), shape.name.as_str());
    let known = status::known_before(object);
    let mut wanted = observe::wanted(shape, status::formed_before(object), known);
    wanted.may_hand_over = context.hand_overs.may_try(place, Timestamp::now());
    wanted.may_spread = wanted.may_hand_over
        && !rollout::is_due(cluster, pods)
        && !context.settings.restart_due(place);
    let created = object.metadata.creation_timestamp.as_ref();
    if !wanted.formed_before {
        wanted.absent = observe::absent_pods(shape, created, pods, claims);
    }
    wanted
}

fn validated(context: &Context, object: &RedisCluster) -> Result<ValidatedCluster, ReconcileError> {
    let versions = &context.caches.versions;
    let entry = |name: &str| versions.get(&ObjectRef::<RedisVersion>::new(name));
    let named = object.spec.version.as_deref().and_then(entry);
    let now = Timestamp::now();
    let mut cluster = validate(object, named.as_deref(), now)?;
    let kept = cluster.server.entry.as_deref().and_then(entry);
    if let Some(kept) = kept.filter(|_| cluster.server.refused.is_some()) {
        cluster.server.support = VersionSupport::of(&kept.spec, now);
    }
    Ok(cluster)
}
