//! What every reconcile needs: the client, the caches, and what this process has written itself.

use crate::{
    certificates::tracker::CertificatesTracker,
    connections::close_unneeded,
    copies::CopyTracker,
    elections::ElectionTracker,
    hand_overs::HandOverTracker,
    held::HeldClusters,
    machines::Machines,
    pod_events::PodEvents,
    progress::ProgressTracker,
    redis::strays::StrayTracker,
    resharding::Resharding,
    resizes::ResizeTracker,
    secrets::{SecretMemory, SecretOwner, SecretsOf},
    settings::tracker::SettingsTracker,
    unresponsive::UnresponsiveTracker,
    users::tracker::RulesTracker,
    zones::KubernetesZones,
};
use common::{
    cluster::kept_connections::KeptConnections,
    kubernetes::{
        apply::Applier,
        events::Events,
        expectations::Expectations,
        grouped::Grouped,
        leases::{Leadership, OperationLeases},
        trigger::Trigger,
    },
    runtime::run::Runtime,
};
use crds::{MANAGER_CLUSTER, RedisCluster, RedisVersion};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Client, runtime::reflector::Store};
use std::sync::Arc;

/// Caches of everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// StatefulSets of all clusters.
    pub stateful_sets: Grouped<StatefulSet>,
    /// Services of all clusters.
    pub services: Grouped<Service>,
    /// ConfigMaps of all clusters.
    pub config_maps: Grouped<ConfigMap>,
    /// Disruption budgets of all clusters.
    pub disruption_budgets: Grouped<PodDisruptionBudget>,
    /// Network policies of all clusters.
    pub network_policies: Grouped<NetworkPolicy>,
    /// Volume claims of all clusters.
    pub claims: Grouped<PersistentVolumeClaim>,
    /// Pods of all clusters.
    pub pods: Grouped<Pod>,
    /// Pods that try a configuration before the pods of a cluster get it.
    pub trials: Grouped<Pod>,
    /// RedisVersions, by which `spec.version` becomes an image.
    pub versions: Store<RedisVersion>,
}

/// What every reconcile needs.
#[derive(Clone)]
pub struct Context {
    /// The Kubernetes client.
    pub client: Client,
    /// The namespace in which the controllers run.
    pub namespace: Arc<str>,
    /// What the watches have seen.
    pub caches: Caches,
    /// What was written and the caches may not show yet.
    pub expectations: Arc<Expectations>,
    /// When nodes were last seen with all that was written.
    pub copies: Arc<CopyTracker>,
    /// Which servers have been elected lately.
    pub elections: Arc<ElectionTracker>,
    /// Since when nodes have been unresponsive.
    pub unresponsive: Arc<UnresponsiveTracker>,
    /// Why pods are missing.
    pub pod_events: Arc<PodEvents>,
    /// When primaries may be handed over again.
    pub hand_overs: Arc<HandOverTracker>,
    /// Keys that no client finds.
    pub strays: Arc<StrayTracker>,
    /// When statuses were written.
    pub progress: Arc<ProgressTracker>,
    /// Sizes that volumes were not allowed to have.
    pub resizes: Arc<ResizeTracker>,
    /// What is known of Kubernetes nodes.
    pub machines: Arc<Machines>,
    /// The zones of Kubernetes nodes.
    pub zones: Arc<KubernetesZones>,
    /// Who holds a cluster for an operation.
    pub operations: Arc<OperationLeases>,
    /// The clusters whose operation Lease a rollout or a hibernation has taken.
    pub held: Arc<HeldClusters>,
    /// Connections to nodes, kept from one reconcile to the next.
    pub connections: Arc<KeptConnections>,
    /// What servers answered when their settings were changed.
    pub settings: Arc<SettingsTracker>,
    /// What servers answered to rules of users.
    pub rules: Arc<RulesTracker>,
    /// What was read of Secrets lately.
    pub secrets: Arc<SecretMemory>,
    /// What was read of certificates, and which servers have presented which.
    pub certificates: Arc<CertificatesTracker>,
    /// Moves of slots.
    pub resharding: Arc<Resharding>,
    /// Applies children.
    pub applier: Applier,
    /// Publishes Events.
    pub events: Events,
    /// Whether this replica may act.
    pub leadership: Leadership,
}

impl Context {
    /// Whether nothing is going on whose connections closing would break: a move of slots, a backup, a restore.
    pub async fn is_idle(&self, (namespace, name): (&str, &str)) -> bool {
        if self.resharding.is_moving((namespace, name)) {
            return false;
        }
        matches!(self.operations.holder(namespace, name).await, Ok(None))
    }

    /// The Secrets of a cluster. `writes`: whether they may be written.
    pub fn secrets_of<'a>(
        &'a self,
        (namespace, name): (&'a str, &'a str),
        reference: &'a OwnerReference,
        writes: bool,
    ) -> SecretsOf<'a> {
        SecretsOf {
            client: &self.client,
            memory: &self.secrets,
            owner: SecretOwner {
                namespace,
                name,
                reference,
            },
            writes,
        }
    }

    /// Everything around these caches.
    pub fn new(
        runtime: &Runtime,
        caches: Caches,
        leadership: Leadership,
        trigger: Trigger<RedisCluster>,
    ) -> Self {
        let expectations = Arc::new(Expectations::new());
        let operations = Arc::new(OperationLeases::new(runtime));
        let (connections, secrets) = (Arc::default(), Arc::default());
        let kept = (Arc::clone(&connections), Arc::clone(&secrets));
        close_unneeded(runtime, kept, leadership.clone());
        let resharding = Resharding::new(
            runtime,
            Arc::clone(&operations),
            leadership.clone(),
            trigger,
        );
        Self {
            client: runtime.client.clone(),
            namespace: Arc::clone(&runtime.lease_namespace),
            caches,
            applier: Applier::new(
                runtime.client.clone(),
                MANAGER_CLUSTER,
                Arc::clone(&expectations),
            ),
            expectations,
            copies: Arc::default(),
            elections: Arc::default(),
            unresponsive: Arc::default(),
            hand_overs: Arc::default(),
            strays: Arc::default(),
            progress: Arc::default(),
            resizes: Arc::default(),
            machines: Arc::new(Machines::new(runtime.client.clone())),
            zones: Arc::new(KubernetesZones::new(runtime.client.clone())),
            held: Arc::new(HeldClusters::new(Arc::clone(&operations))),
            operations,
            connections,
            settings: Arc::default(),
            rules: Arc::default(),
            secrets,
            certificates: Arc::default(),
            resharding: Arc::new(resharding),
            pod_events: Arc::new(PodEvents::new(runtime.client.clone())),
            events: runtime.events.clone(),
            leadership,
        }
    }
}
