//! The process: arguments, watches, the run loop.

use crate::{
    context::{Caches, Context},
    metrics,
    reconcile::Reconciler,
};
use clap::Parser;
use common::{
    kubernetes::{controller::Controller, leases::Leadership},
    runtime::{
        Program,
        arguments::CommonArguments,
        run::{BoxError, Runtime, run},
    },
};
use crds::{LABEL_CLUSTER, LABEL_TRIAL, RedisCluster};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use std::{process::ExitCode, sync::Arc, time::Duration};

/// Changes that come within this time are one reconcile: short, because a cluster is down while its pods come back.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Forms and repairs Redis Clusters.
#[derive(Debug, Parser)]
#[command(name = "cluster-controller", version)]
struct Arguments {
    #[command(flatten)]
    common: CommonArguments,
}

/// Parses the arguments and runs until it is asked to stop.
pub fn main() -> ExitCode {
    let Arguments { common } = Arguments::parse();
    let program = Program {
        name: "cluster-controller",
        version: env!("CARGO_PKG_VERSION"),
    };
    run(program, &common, start)
}

/// Runs the controller in a runtime.
pub async fn start(runtime: Runtime) -> Result<(), BoxError> {
    let leadership = Leadership::start(&runtime);
    let mut controller = Controller::<RedisCluster>::new(&runtime, runtime.api());
    controller.only_leader(&leadership);
    controller.debounce(DEBOUNCE);
    let clusters = controller.store();
    let (shown, leads) = (clusters.clone(), leadership.clone());
    runtime.metrics.object_gauges(&metrics::GAUGES, move || {
        // The leader alone, so that sums over replicas are right.
        let clusters = leads.is_leader_now().then(|| shown.state());
        metrics::samples(&clusters.unwrap_or_default())
    });
    let caches = Caches {
        stateful_sets: controller.owns(runtime.api(), LABEL_CLUSTER),
        services: controller.owns(runtime.api(), LABEL_CLUSTER),
        config_maps: controller.owns(runtime.api(), LABEL_CLUSTER),
        disruption_budgets: controller.owns(runtime.api(), LABEL_CLUSTER),
        network_policies: controller.owns(runtime.api(), LABEL_CLUSTER),
        pods: controller.watches_labelled(runtime.api(), LABEL_CLUSTER, cluster_of::<Pod>),
        claims: controller.watches_labelled(
            runtime.api(),
            LABEL_CLUSTER,
            cluster_of::<PersistentVolumeClaim>,
        ),
        trials: controller.owns(runtime.api(), LABEL_TRIAL),
        versions: controller.watches(
            Api::all(runtime.client.clone()),
            move |version: &crds::RedisVersion| {
                let name = version.name_any();
                let users = clusters.state();
                users
                    .iter()
                    .filter(|cluster| cluster.spec.version.as_ref() == Some(&name))
                    .map(|cluster| ObjectRef::from_obj(cluster.as_ref()))
                    .collect()
            },
        ),
    };
    let context = Context::new(&runtime, caches, leadership, controller.trigger());
    controller.run(Arc::new(Reconciler { context })).await;
    Ok(())
}

/// Pods and volume claims belong to StatefulSets; the label says whose they are in the end.
fn cluster_of<K: ResourceExt>(object: &K) -> Vec<ObjectRef<RedisCluster>> {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.labels().get(LABEL_CLUSTER);
    name.map(|name| ObjectRef::new(name).within(&namespace))
        .into_iter()
        .collect()
}
