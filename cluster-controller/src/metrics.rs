//! What is shown of each RedisCluster. Pure: computed from its status.

use common::{
    kubernetes::conditions::holds,
    runtime::object_metrics::{ObjectGauge, Sample},
};
use crds::RedisCluster;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::sync::Arc;

const READY: ObjectGauge = ObjectGauge {
    name: "cluster_ready",
    help: "1 while the condition Ready of the RedisCluster holds",
};
const SHARDS: ObjectGauge = ObjectGauge {
    name: "cluster_shards",
    help: "Shards wanted by the RedisCluster",
};
const READY_SHARDS: ObjectGauge = ObjectGauge {
    name: "cluster_ready_shards",
    help: "Shards whose primary serves and whose replicas are linked",
};
const SLOTS_OK: ObjectGauge = ObjectGauge {
    name: "cluster_slots_ok",
    help: "Slots whose primary is alive and serves, of 16384",
};
const HIBERNATES: ObjectGauge = ObjectGauge {
    name: "cluster_hibernates",
    help: "1 while the RedisCluster is to have no pods",
};
const CERTIFICATE_EXPIRY: ObjectGauge = ObjectGauge {
    name: "cluster_certificate_expiry_timestamp_seconds",
    help: "When the certificate that the servers present expires",
};

/// All of them.
pub const GAUGES: [ObjectGauge; 6] = [
    READY,
    SHARDS,
    READY_SHARDS,
    SLOTS_OK,
    HIBERNATES,
    CERTIFICATE_EXPIRY,
];

/// What the statuses of the clusters show.
pub fn samples(clusters: &[Arc<RedisCluster>]) -> Vec<Sample> {
    clusters
        .iter()
        .flat_map(|cluster| of_cluster(cluster))
        .collect()
}

fn of_cluster(cluster: &RedisCluster) -> Vec<Sample> {
    let Some(status) = &cluster.status else {
        return Vec::new();
    };
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let ready = i32::from(holds(&status.conditions, "Ready"));
    let hibernates = i32::from(cluster.spec.hibernate);
    let values = [
        (READY, ready),
        (SHARDS, cluster.spec.shards),
        (READY_SHARDS, status.ready_shards),
        (SLOTS_OK, status.slots.ok),
        (HIBERNATES, hibernates),
    ];
    let values = values.map(|(gauge, value)| (gauge, f64::from(value)));
    let expiry = status.tls.as_ref().map(|certificate| {
        let since_epoch = certificate
            .not_after
            .0
            .duration_since(Timestamp::UNIX_EPOCH);
        (CERTIFICATE_EXPIRY, since_epoch.as_secs_f64())
    });
    let values = values.into_iter().chain(expiry);
    let samples = values.map(|(gauge, value)| Sample::of(gauge, &namespace, &name, value));
    samples.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{Encryption, RedisClusterSpec, RedisClusterStatus, SlotsStatus, TlsStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_cluster_shows_its_shards_and_slots() {
        let mut cluster = RedisCluster::new(
            "demo",
            RedisClusterSpec {
                shards: 3,
                ..RedisClusterSpec::default()
            },
        );
        cluster.metadata.namespace = Some("shop".into());
        assert!(samples(&[Arc::new(cluster.clone())]).is_empty());
        cluster.spec.hibernate = true;
        cluster.status = Some(RedisClusterStatus {
            tls: Some(TlsStatus {
                serial: "07".into(),
                not_after: Time("1970-01-02T00:00:00Z".parse().unwrap()),
                encryption: Encryption::Only,
            }),
            ready_shards: 2,
            slots: SlotsStatus {
                assigned: 16384,
                ok: 10923,
            },
            ..RedisClusterStatus::default()
        });
        let values: Vec<f64> = samples(&[Arc::new(cluster)])
            .into_iter()
            .map(|sample| sample.value)
            .collect();
        assert_eq!(values, [0.0, 3.0, 2.0, 10923.0, 1.0, 86400.0]);
    }
}
