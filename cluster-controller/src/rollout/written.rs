//! Which StatefulSets have what is wanted. Pure.

use crate::{
    settings::template::{NamedTemplate, NamedTemplates},
    validate::ValidatedCluster,
};
use std::collections::BTreeSet;

/// The shards whose StatefulSet makes pods as they are wanted, with the ConfigMap of this name, or as they are kept.
pub fn written(
    cluster: &ValidatedCluster,
    configuration: &str,
    templates: &NamedTemplates,
) -> BTreeSet<i32> {
    let storage = cluster.storage.as_ref();
    let adopts = storage.and_then(|storage| storage.adopts.as_deref());
    let is_written = |shard: i32, one: &NamedTemplate| {
        let is_wanted = one.restart_hash == cluster.restart_hash
            && one.configuration == configuration
            && one.adopts() == adopts;
        is_wanted || cluster.held.contains_key(&shard)
    };
    let written = templates
        .iter()
        .filter(|(shard, one)| is_written(**shard, one));
    written.map(|(shard, _)| *shard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::{build, configuration_name},
        sets::SetSize,
        validate::{tests::example, validate},
    };
    use crds::RedisCluster;
    use k8s_openapi::{api::core::v1::PodTemplateSpec, jiff::Timestamp};
    use std::sync::Arc;

    fn rendered(cluster: &ValidatedCluster, shards: i32) -> NamedTemplates {
        let size = |shard| SetSize {
            shard,
            pods: 1,
            keeps_volumes: true,
        };
        let sizes: Vec<SetSize> = (0..shards).map(size).collect();
        let sets = build(cluster, &sizes, "system").stateful_sets;
        let sets = sets.into_iter().map(Arc::new);
        let templates = sets.filter_map(|set| NamedTemplate::of(&set));
        (0..).zip(templates).collect()
    }

    fn validated(change: impl Fn(&mut RedisCluster)) -> ValidatedCluster {
        let mut object = example();
        change(&mut object);
        validate(&object, None, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_set_is_written_once_it_names_everything() {
        let before = validated(|_| {});
        let templates = rendered(&before, 3);
        let count = |cluster: &ValidatedCluster| {
            written(cluster, &configuration_name(cluster), &templates).len()
        };
        assert_eq!(count(&before), 3);
        let image = validated(|object| object.spec.image = Some("other".into()));
        let setting = validated(|object| {
            object.spec.config.insert("databases".into(), "9".into());
        });
        let adoption = validated(|object| {
            let annotations = object.metadata.annotations.get_or_insert_default();
            annotations.insert(crds::ANNOTATION_ADOPT_VOLUMES.into(), "team/old".into());
        });
        assert_eq!([&image, &setting, &adoption].map(count), [0; 3]);
    }

    /// A change of the pod template waits with the image: otherwise pods would get it under the hash of the one before.
    #[test]
    fn a_template_that_is_kept_is_kept_whole() {
        let before = rendered(&validated(|_| {}), 3);
        let mut held = validated(|object| {
            object.spec.image = Some("other".into());
            let template = object.spec.pod_template.get_or_insert_default();
            template.labels.insert("team".into(), "web".into());
        });
        held.held.clone_from(&before);
        let after = rendered(&held, 4);
        let whole = |templates: &NamedTemplates, shard| -> PodTemplateSpec {
            templates[&shard].whole().clone()
        };
        for shard in 0..3 {
            assert_eq!(whole(&after, shard), whole(&before, shard));
        }
        assert_eq!(written(&held, &configuration_name(&held), &before).len(), 3);
        // A new shard has the label, the image that is kept, and the hash of both.
        assert_eq!(after[&3].image, before[&0].image);
        assert_ne!(after[&3].restart_hash, before[&0].restart_hash);
        assert_ne!(after[&3].restart_hash, held.restart_hash);
    }
}
