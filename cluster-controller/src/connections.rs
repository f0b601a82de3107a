//! Closes connections to nodes that are not needed any more: they are this replica's while it leads. What it has read of Secrets counts as
//! long.

use crate::secrets::SecretMemory;
use common::{
    cluster::kept_connections::KeptConnections, kubernetes::leases::Leadership, runtime::Runtime,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How often connections are looked at that no reconcile has used.
const INTERVAL: Duration = Duration::from_secs(30);

/// Closes all connections when this replica ceases to lead, and old ones from time to time, until the process ends.
pub fn close_unneeded(
    runtime: &Runtime,
    (connections, secrets): (Arc<KeptConnections>, Arc<SecretMemory>),
    mut leadership: Leadership,
) {
    runtime.keep("node connections", |end| async move {
        loop {
            let leads = tokio::select! {
                () = end.cancelled() => return,
                changes = leadership.changed() => changes,
                () = tokio::time::sleep(INTERVAL) => true,
            };
            if leadership.is_leader_now() {
                connections.close_old(Instant::now());
            } else {
                connections.clear();
                secrets.clear();
            }
            if !leads {
                return;
            }
        }
    });
}
