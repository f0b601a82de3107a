//! The wiring of the controller.

use crate::{
    arguments::{Arguments, ControllerArguments},
    memory::container_limit,
    metrics::{NAMES, RestoreMetrics},
    object_metrics,
    plan::target_name,
    planner::RestorePlanning,
    replay::ValueLimit,
    units::RestoreUnits,
    worker::ReplayPath,
};
use common::{
    access::Buckets,
    claims::{
        driver::{Driver, without_units},
        metrics::WorkMetrics,
        permits::Quota,
    },
    kubernetes::{controller::Controller, leases::Leadership},
    runtime::{self, BoxError, Program, Runtime},
};
use crds::{RedisBackup, RedisCluster, RedisRestore};
use kube::ResourceExt;
use std::process::ExitCode;

/// What runs.
pub const PROGRAM: Program = Program {
    name: "restore-controller",
    version: env!("CARGO_PKG_VERSION"),
};

/// Does what the command line says.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments { common, controller } = arguments;
    runtime::run(PROGRAM, &common, |runtime| control(runtime, controller))
}

/// The work of the controller: ends after the runtime's shutdown was cancelled.
pub async fn control(runtime: Runtime, arguments: ControllerArguments) -> Result<(), BoxError> {
    let ControllerArguments {
        streams,
        memory_limit,
        storage,
    } = arguments;
    let buckets = Buckets::new(runtime.client.clone(), storage.into());
    let memory = memory_limit.map(|mib| mib.saturating_mul(1024 * 1024));
    let memory = memory.or_else(container_limit);
    let quota = Quota::streams(usize::from(streams));
    let value_limit = ValueLimit::within(memory, quota.all);
    let leadership = Leadership::start(&runtime);
    let metrics = WorkMetrics::new(&runtime.metrics, NAMES);

    let mut restores = Controller::<RedisRestore>::new(&runtime, runtime.api());
    restores.trigger_on_leadership(&leadership);
    let store = restores.store();
    let (shown, leads) = (store.clone(), leadership.clone());
    runtime
        .metrics
        .object_gauges(&object_metrics::GAUGES, move || {
            // The leader alone, so that sums over replicas are right.
            let restores = leads.is_leader_now().then(|| shown.state());
            object_metrics::samples(&restores.unwrap_or_default())
        });
    restores.watches::<RedisCluster>(runtime.api(), move |cluster| {
        let (namespace, name) = (cluster.metadata.namespace.as_deref(), cluster.name_any());
        without_units::<RestoreUnits>(&store, namespace, |restore| target_name(restore) == name)
    });
    let store = restores.store();
    restores.watches::<RedisBackup>(runtime.api(), move |backup| {
        let (namespace, name) = (backup.metadata.namespace.as_deref(), backup.name_any());
        without_units::<RestoreUnits>(&store, namespace, |restore| {
            let source = restore.spec.source.backup_ref.as_ref();
            source.is_some_and(|reference| reference.name == name)
        })
    });
    let written = RestoreMetrics::new(&runtime.metrics);
    let driver = Driver::new(
        &runtime,
        &restores,
        leadership,
        &metrics,
        quota,
        ReplayPath::new(
            runtime.client.clone(),
            buckets.clone(),
            written,
            value_limit,
        ),
        RestorePlanning::new(buckets),
    );
    restores.run(driver).await;
    Ok(())
}
