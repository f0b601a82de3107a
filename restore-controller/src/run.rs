//! The wiring of the controller.

use crate::{
    arguments::{Arguments, ControllerArguments},
    metrics::RestoreMetrics,
    object_metrics,
    plan::{is_finished, target_name},
    planner::Planner,
    reconcile::Restores,
    worker::Worker,
};
use common::{
    kubernetes::{
        controller::Controller,
        leases::{Leadership, Membership},
        wake::Wake,
    },
    runtime::{self, BoxError, Program, Runtime},
};
use crds::{RedisBackup, RedisCluster, RedisRestore};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::{process::ExitCode, sync::Arc};

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
    let ControllerArguments { streams } = arguments;
    let membership = Membership::start(&runtime);
    let leadership = Leadership::start(&runtime);
    let metrics = RestoreMetrics::new(&runtime.metrics);

    let mut restores = Controller::<RedisRestore>::new(&runtime, runtime.api());
    restores.wake_on_leadership(&leadership);
    let store = restores.store();
    let (shown, leads) = (store.clone(), leadership.clone());
    runtime
        .metrics
        .object_gauges(&object_metrics::GAUGES, move || {
            // The leader alone, so that sums over replicas are right.
            let restores = leads.is_leader_now().then(|| shown.state());
            object_metrics::samples(&restores.unwrap_or_default())
        });
    let waiting = store.clone();
    restores.watches::<RedisCluster>(runtime.api(), runtime.watch(), move |cluster| {
        let name = cluster.name_any();
        unlisted(&waiting, cluster.metadata.namespace.as_deref(), |r| {
            target_name(r) == name
        })
    });
    let waiting = store.clone();
    restores.watches::<RedisBackup>(runtime.api(), runtime.watch(), move |backup| {
        let name = backup.name_any();
        unlisted(&waiting, backup.metadata.namespace.as_deref(), |restore| {
            let source = restore.spec.source.backup_ref.as_ref();
            source.is_some_and(|reference| reference.name == name)
        })
    });
    let wake = restores.wake();
    wake_when_joined(&runtime, membership.clone(), store.clone(), wake.clone());
    let worker = Worker::new(
        &runtime,
        membership,
        metrics.clone(),
        usize::from(streams),
        store,
        wake.clone(),
    );
    let planner = Planner::new(&runtime, leadership.clone(), metrics, wake);
    let reconciler = Arc::new(Restores {
        worker,
        planner,
        leadership,
    });
    restores.run(reconciler).await;
    Ok(())
}

/// Restores that have not begun to write: what they wait for may just have happened.
fn unlisted(
    restores: &Store<RedisRestore>,
    namespace: Option<&str>,
    concerns: impl Fn(&RedisRestore) -> bool,
) -> Vec<ObjectRef<RedisRestore>> {
    let state = restores.state();
    let waiting = state.iter().filter(|restore| {
        let status = restore.status.as_ref();
        restore.metadata.namespace.as_deref() == namespace
            && status.is_none_or(|status| !is_finished(status) && status.units.is_empty())
            && concerns(restore)
    });
    waiting
        .map(|restore| ObjectRef::from_obj(restore.as_ref()))
        .collect()
}

/// Units can be taken only once the member lease is written: what was seen before is looked at again then.
fn wake_when_joined(
    runtime: &Runtime,
    mut membership: Membership,
    restores: Store<RedisRestore>,
    wake: Wake<RedisRestore>,
) {
    runtime.keep("wait for the member lease", |end| async move {
        if end.run_until_cancelled(membership.joined()).await == Some(true) {
            for restore in restores.state() {
                let namespace = restore.namespace().unwrap_or_default();
                wake.object(&namespace, &restore.name_any());
            }
        }
    });
}
