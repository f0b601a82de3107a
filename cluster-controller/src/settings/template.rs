//! What the StatefulSets that exist name: it stays while a new configuration is tried. Pure.

use crate::pods;
use crds::{ANNOTATION_RESTART_HASH, CONTAINER};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PodSpec, PodTemplateSpec, ResourceRequirements},
};
use std::{collections::BTreeMap, sync::Arc};

/// What the pod template of a StatefulSet names.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTemplate {
    /// Image of the server.
    pub image: String,
    /// Requests and limits of the server.
    pub resources: Option<ResourceRequirements>,
    /// Hash of what a server only takes in by a restart.
    pub restart_hash: String,
    /// Name of the ConfigMap.
    pub configuration: String,
    /// The StatefulSet, as the cache has it: its template is kept whole.
    pub set: Arc<StatefulSet>,
}

/// The templates by shard.
pub type NamedTemplates = BTreeMap<i32, NamedTemplate>;

impl NamedTemplate {
    /// Reads a StatefulSet. None: it is not one that the controller has rendered.
    pub fn of(set: &Arc<StatefulSet>) -> Option<Self> {
        let template = &set.spec.template;
        let annotations = template.metadata.as_ref()?.annotations.as_ref()?;
        let pod = template.spec.as_ref()?;
        let server = pod.containers.iter().find(|one| one.name == CONTAINER)?;
        Some(Self {
            image: server.image.clone()?,
            resources: server
                .resources
                .clone()
                .filter(|one| *one != ResourceRequirements::default()),
            restart_hash: annotations.get(ANNOTATION_RESTART_HASH)?.clone(),
            configuration: configuration(pod)?.to_owned(),
            set: Arc::clone(set),
        })
    }

    /// The whole of it.
    pub fn whole(&self) -> &PodTemplateSpec {
        &self.set.spec.template
    }

    /// Whether its pods start with the Secret of this volume.
    pub fn mounts(&self, volume: &str) -> bool {
        let pod = self.whole().spec.as_ref();
        pod.is_some_and(|pod| pods::has_secret(pod, volume))
    }

    /// `namespace/name` of the RedisCluster whose volumes the pods may take over.
    pub fn adopts(&self) -> Option<&str> {
        pods::adopts(self.whole().spec.as_ref()?)
    }
}

/// The ConfigMap with redis.conf that a pod mounts.
pub fn configuration(pod: &PodSpec) -> Option<&str> {
    let mut volumes = pod.volumes.iter().flatten();
    let volume = volumes.find(|volume| volume.name == "config")?;
    Some(volume.config_map.as_ref()?.name.as_str())
}
