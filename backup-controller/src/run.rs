//! The wiring of the controller.

use crate::{
    arguments::{Arguments, Command, ControllerArguments},
    create_backup,
    metrics::BackupMetrics,
    object_metrics,
    plan::is_finished,
    planner::Planner,
    reconcile::Backups,
    schedules::Schedules,
    worker::Worker,
};
use common::{
    kubernetes::{
        controller::Controller,
        leases::{Leadership, Membership},
    },
    runtime::{self, BoxError, Program, Runtime},
};
use crds::{RedisBackup, RedisCluster};
use jiff::Timestamp;
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
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
    let ControllerArguments { streams, image } = arguments;
    let membership = Membership::start(&runtime);
    let leadership = Leadership::start(&runtime);
    let metrics = BackupMetrics::new(&runtime.metrics);

    let mut backups = Controller::<RedisBackup>::new(&runtime, runtime.api());
    backups.wake_on_leadership(&leadership);
    let store = backups.store();
    let (shown, leads) = (store.clone(), leadership.clone());
    runtime
        .metrics
        .object_gauges(&object_metrics::GAUGES, move || {
            // The leader alone, so that sums over replicas are right.
            let backups = leads.is_leader_now().then(|| shown.state());
            object_metrics::samples(&backups.unwrap_or_default())
        });
    let waiting = store.clone();
    backups.watches::<RedisCluster>(runtime.api(), runtime.watch(), move |cluster| {
        unfinished(&waiting, cluster)
    });
    let wake = backups.wake();
    wake_when_joined(&runtime, membership.clone(), store.clone(), wake.clone());
    let reconciler = Arc::new(Backups {
        worker: Worker::new(
            &runtime,
            membership,
            metrics.clone(),
            usize::from(streams),
            store,
            wake.clone(),
        ),
        planner: Planner::new(&runtime, leadership.clone(), metrics, wake),
        leadership: leadership.clone(),
    });

    let mut clusters = Controller::<RedisCluster>::new(&runtime, runtime.api());
    clusters.only_leader(&leadership);
    let schedules = Arc::new(Schedules::new(&runtime, leadership, image));
    tokio::join!(backups.run(reconciler), clusters.run(schedules));
    Ok(())
}

/// Backups of a cluster that have not begun to stream: what they wait for may just have happened.
fn unfinished(backups: &Store<RedisBackup>, cluster: &RedisCluster) -> Vec<ObjectRef<RedisBackup>> {
    let (namespace, name) = (cluster.namespace(), cluster.name_any());
    let waits = |backup: &RedisBackup| {
        backup.namespace() == namespace
            && backup.spec.cluster_ref.name == name
            && backup
                .status
                .as_ref()
                .is_none_or(|status| !is_finished(status) && status.shards.is_empty())
    };
    let state = backups.state();
    let waiting = state.iter().filter(|backup| waits(backup));
    waiting
        .map(|backup| ObjectRef::from_obj(backup.as_ref()))
        .collect()
}

/// Units can be taken only once the member lease is written: what was seen before is looked at again then.
fn wake_when_joined(
    runtime: &Runtime,
    mut membership: Membership,
    backups: Store<RedisBackup>,
    wake: common::kubernetes::wake::Wake<RedisBackup>,
) {
    runtime.keep("wait for the member lease", |end| async move {
        if end.run_until_cancelled(membership.joined()).await == Some(true) {
            for backup in backups.state() {
                wake.object(&backup.namespace().unwrap_or_default(), &backup.name_any());
            }
        }
    });
}
