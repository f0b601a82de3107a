//! The wiring of the controller.

use crate::{
    arguments::{Arguments, Command, ControllerArguments},
    create_backup,
    metrics::{BackupMetrics, NAMES},
    object_metrics, own_image,
    planner::BackupPlanning,
    schedules::Schedules,
    units::BackupUnits,
    worker::CapturePath,
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
use crds::{RedisBackup, RedisCluster};
use jiff::Timestamp;
use kube::ResourceExt;
use std::{process::ExitCode, sync::Arc};

/// What runs.
pub const PROGRAM: Program = Program {
    name: "backup-controller",
    version: env!("CARGO_PKG_VERSION"),
};

/// Does what the command line says.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments {
        common,
        controller,
        command,
    } = arguments;
    match command {
        None | Some(Command::Run) => {
            runtime::run(PROGRAM, &common, |runtime| control(runtime, controller))
        }
        Some(Command::CreateBackup(order)) => {
            runtime::run_once(PROGRAM, &common, |client| async move {
                Ok(create_backup::create(client, &order, Timestamp::now()).await?)
            })
        }
    }
}

/// The work of the controller: ends after the runtime's shutdown was cancelled.
pub async fn control(runtime: Runtime, arguments: ControllerArguments) -> Result<(), BoxError> {
    let ControllerArguments {
        streams,
        image,
        storage,
    } = arguments;
    let buckets = Buckets::new(runtime.client.clone(), storage.into());
    let leadership = Leadership::start(&runtime);
    let metrics = WorkMetrics::new(&runtime.metrics, NAMES);

    let mut backups = Controller::<RedisBackup>::new(&runtime, runtime.api());
    backups.trigger_on_leadership(&leadership);
    let store = backups.store();
    let (shown, leads) = (store.clone(), leadership.clone());
    runtime
        .metrics
        .object_gauges(&object_metrics::GAUGES, move || {
            // The leader alone, so that sums over replicas are right.
            let backups = leads.is_leader_now().then(|| shown.state());
            object_metrics::samples(&backups.unwrap_or_default())
        });
    backups.watches::<RedisCluster>(runtime.api(), move |cluster| {
        let (namespace, name) = (cluster.metadata.namespace.as_deref(), cluster.name_any());
        without_units::<BackupUnits>(&store, namespace, |backup| {
            backup.spec.cluster_ref.name == name
        })
    });
    let captured = BackupMetrics::new(&runtime.metrics);
    let driver = Driver::new(
        &runtime,
        &backups,
        leadership.clone(),
        &metrics,
        Quota::streams(usize::from(streams)),
        CapturePath::new(runtime.client.clone(), buckets.clone(), captured),
        BackupPlanning::new(&runtime, leadership.clone(), buckets),
    );

    let mut clusters = Controller::<RedisCluster>::new(&runtime, runtime.api());
    clusters.only_leader(&leadership);
    let schedules = async {
        let image = match image {
            Some(image) => Some(image),
            None => own_image::find(&runtime).await,
        };
        let schedules = Schedules::new(&runtime, leadership, image);
        clusters.run(Arc::new(schedules)).await;
    };
    tokio::join!(backups.run(driver), schedules);
    Ok(())
}
