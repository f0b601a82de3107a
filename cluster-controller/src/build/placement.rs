//! Where the scheduler puts the pods of a shard: what `spec.placement` asks for, and what the pod template adds to it.

use super::{selector, selects, shard_selector};
use crate::validate::ValidatedCluster;
use crds::{LABEL_HOSTNAME, LABEL_ZONE, ShardAntiAffinity};
use k8s_openapi::api::core::v1::{
    Affinity, PodAffinityTerm, PodAntiAffinity, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

/// A shard's nodes on different Kubernetes nodes, and all nodes spread where that leaves a choice. Preferred unless asked for otherwise: on
/// fewer Kubernetes nodes than a shard has nodes a cluster with all its nodes is better than one without replicas.
pub(super) fn affinity(cluster: &ValidatedCluster, shard: i32) -> Option<Affinity> {
    let ours = anti_affinity(cluster, shard);
    let Some(more) = &cluster.pod_template.affinity else {
        return ours.map(|anti_affinity| Affinity {
            pod_anti_affinity: Some(anti_affinity),
            ..Affinity::default()
        });
    };
    let pod_anti_affinity = match (ours, more.pod_anti_affinity.clone()) {
        (Some(ours), Some(more)) => Some(both(ours, more)),
        (ours, more) => ours.or(more),
    };
    Some(Affinity {
        pod_anti_affinity,
        ..more.clone()
    })
}

fn anti_affinity(cluster: &ValidatedCluster, shard: i32) -> Option<PodAntiAffinity> {
    let placement = &cluster.placement;
    let apart = |topology_key: &str, labels| PodAffinityTerm {
        topology_key: topology_key.to_owned(),
        label_selector: Some(selects(labels)),
        ..PodAffinityTerm::default()
    };
    let weighted = |weight, pod_affinity_term| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term,
    };
    let shard = apart(&placement.topology_key, shard_selector(cluster, shard));
    let all = weighted(10, apart(LABEL_HOSTNAME, selector(cluster)));
    let (required, preferred) = match placement.shard_anti_affinity {
        ShardAntiAffinity::Preferred => (None, vec![weighted(100, shard), all]),
        ShardAntiAffinity::Required => (Some(vec![shard]), vec![all]),
        ShardAntiAffinity::Disabled => return None,
    };
    Some(PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: Some(preferred),
    })
}

fn both(ours: PodAntiAffinity, more: PodAntiAffinity) -> PodAntiAffinity {
    PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: joined(
            ours.required_during_scheduling_ignored_during_execution,
            more.required_during_scheduling_ignored_during_execution,
        ),
        preferred_during_scheduling_ignored_during_execution: joined(
            ours.preferred_during_scheduling_ignored_during_execution,
            more.preferred_during_scheduling_ignored_during_execution,
        ),
    }
}

/// The first, then the second. None where there is neither: an empty list would be another rendering.
fn joined<T>(first: Option<Vec<T>>, second: Option<Vec<T>>) -> Option<Vec<T>> {
    let all: Vec<T> = first.into_iter().chain(second).flatten().collect();
    (!all.is_empty()).then_some(all)
}

/// A shard's nodes over the zones, and the constraints of the user.
pub(super) fn spread_constraints(
    cluster: &ValidatedCluster,
    shard: i32,
) -> Option<Vec<TopologySpreadConstraint>> {
    let placement = &cluster.placement;
    let when_unsatisfiable = match placement.shard_anti_affinity {
        ShardAntiAffinity::Required => "DoNotSchedule",
        ShardAntiAffinity::Preferred | ShardAntiAffinity::Disabled => "ScheduleAnyway",
    };
    let ours = placement.zones.spread.then(|| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: LABEL_ZONE.to_owned(),
        when_unsatisfiable: when_unsatisfiable.to_owned(),
        label_selector: Some(selects(shard_selector(cluster, shard))),
        ..TopologySpreadConstraint::default()
    });
    // Without a selector Kubernetes counts no pods at all.
    let constraints = cluster.pod_template.topology_spread_constraints.iter();
    let more = constraints.map(|one| TopologySpreadConstraint {
        label_selector: one
            .label_selector
            .clone()
            .or_else(|| Some(selects(selector(cluster)))),
        ..one.clone()
    });
    joined(Some(ours.into_iter().collect()), Some(more.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
    use crds::{PodTemplate, RedisCluster, ZonePlacement};
    use k8s_openapi::{
        api::core::v1::{NodeAffinity, PodAffinity},
        jiff::Timestamp,
    };

    fn validated(change: impl Fn(&mut RedisCluster)) -> ValidatedCluster {
        let mut cluster = example();
        change(&mut cluster);
        validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn counts(affinity: &Affinity) -> (usize, usize) {
        let anti = affinity.pod_anti_affinity.clone().unwrap_or_default();
        let required = anti.required_during_scheduling_ignored_during_execution;
        let preferred = anti.preferred_during_scheduling_ignored_during_execution;
        (
            required.map_or(0, |terms| terms.len()),
            preferred.map_or(0, |terms| terms.len()),
        )
    }

    #[test]
    fn a_shard_is_kept_apart_as_asked_for() {
        let apart = |how, key: &str| {
            let cluster = validated(|cluster| {
                cluster.spec.placement.shard_anti_affinity = how;
                key.clone_into(&mut cluster.spec.placement.topology_key);
            });
            affinity(&cluster, 1)
        };
        let preferred = apart(ShardAntiAffinity::Preferred, LABEL_HOSTNAME).unwrap();
        assert_eq!(counts(&preferred), (0, 2));
        let required = apart(ShardAntiAffinity::Required, "rack").unwrap();
        assert_eq!(counts(&required), (1, 1));
        let anti = required.pod_anti_affinity.unwrap();
        let terms = anti.required_during_scheduling_ignored_during_execution;
        let [term] = <[_; 1]>::try_from(terms.unwrap()).unwrap();
        assert_eq!(term.topology_key, "rack");
        let labels = term.label_selector.unwrap().match_labels.unwrap();
        assert_eq!(labels[crds::LABEL_SHARD], "1");
        assert_eq!(apart(ShardAntiAffinity::Disabled, LABEL_HOSTNAME), None);
    }

    #[test]
    fn the_users_rules_are_added_to_ours() {
        let term = PodAffinityTerm {
            topology_key: "rack".into(),
            ..PodAffinityTerm::default()
        };
        let more = Affinity {
            node_affinity: Some(NodeAffinity::default()),
            pod_affinity: Some(PodAffinity::default()),
            pod_anti_affinity: Some(PodAntiAffinity {
                required_during_scheduling_ignored_during_execution: Some(vec![term.clone()]),
                preferred_during_scheduling_ignored_during_execution: Some(vec![
                    WeightedPodAffinityTerm {
                        weight: 1,
                        pod_affinity_term: term,
                    },
                ]),
            }),
        };
        let with = |how| {
            let cluster = validated(|cluster| {
                cluster.spec.placement.shard_anti_affinity = how;
                cluster.spec.pod_template = Some(PodTemplate {
                    affinity: Some(more.clone()),
                    ..PodTemplate::default()
                });
            });
            affinity(&cluster, 0).unwrap()
        };
        let joined = with(ShardAntiAffinity::Required);
        assert_eq!(counts(&joined), (2, 2));
        assert_eq!(joined.node_affinity, more.node_affinity);
        assert_eq!(joined.pod_affinity, more.pod_affinity);
        assert_eq!(with(ShardAntiAffinity::Disabled), more);
    }

    #[test]
    fn zones_are_spread_as_strictly_as_shards() {
        let rendered = |how, spread| {
            let cluster = validated(|cluster| {
                cluster.spec.placement.shard_anti_affinity = how;
                cluster.spec.placement.zones = ZonePlacement { spread };
                let own = TopologySpreadConstraint {
                    max_skew: 2,
                    topology_key: "rack".into(),
                    when_unsatisfiable: "ScheduleAnyway".into(),
                    ..TopologySpreadConstraint::default()
                };
                cluster.spec.pod_template = Some(PodTemplate {
                    topology_spread_constraints: vec![own],
                    ..PodTemplate::default()
                });
            });
            spread_constraints(&cluster, 2).unwrap()
        };
        for (how, strictly) in [
            (ShardAntiAffinity::Required, "DoNotSchedule"),
            (ShardAntiAffinity::Preferred, "ScheduleAnyway"),
            (ShardAntiAffinity::Disabled, "ScheduleAnyway"),
        ] {
            let [zones, own] = <[_; 2]>::try_from(rendered(how, true)).unwrap();
            assert_eq!(
                (zones.topology_key.as_str(), zones.max_skew),
                (LABEL_ZONE, 1)
            );
            assert_eq!(zones.when_unsatisfiable, strictly);
            let labels = zones.label_selector.unwrap().match_labels.unwrap();
            assert_eq!(labels[crds::LABEL_SHARD], "2");
            // The user's constraint counts the pods of the whole cluster.
            let labels = own.label_selector.unwrap().match_labels.unwrap();
            assert_eq!(labels.len(), 1, "{labels:?}");
        }
        assert_eq!(rendered(ShardAntiAffinity::Required, false).len(), 1);
        assert_eq!(spread_constraints(&validated(|_| {}), 0), None);
    }
}
