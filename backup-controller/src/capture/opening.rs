//! The beginning of a stream: which node, and how long it is waited for.

use super::{
    CaptureError, CaptureProgress, CaptureRequest,
    source::{self, SourceNode},
};
use common::cluster::replication::{
    Handshake, ReplicationError, ReplicationOptions, ReplicationStream,
};
use jiff::Timestamp;
use std::time::Duration;
use tokio::{sync::watch, time::timeout};

/// How long a server may take to connect and for each answer before PSYNC.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may put its snapshot off: another child process may have to end first, and it says only that it lives.
const FORK_PATIENCE: Duration = Duration::from_mins(10);
/// How long it may take from the snapshot to its first byte: without diskless replication all of it is written to a disk first.
const SAVE_PATIENCE: Duration = Duration::from_hours(1);

/// Chooses the node and waits until it has taken its snapshot.
pub async fn open(
    request: &CaptureRequest,
    progress: &watch::Sender<CaptureProgress>,
) -> Result<(SourceNode, ReplicationStream, Timestamp), CaptureError> {
    let source = source::find(
        &request.seeds,
        &request.slots,
        request.prefer,
        request.patience,
    )
    .await?;
    progress.send_modify(|seen| seen.source = Some(source.choice));
    let options = ReplicationOptions {
        server_version: Some(source.server.version.clone()),
        ..ReplicationOptions::default()
    };
    let address = source.choice.address.client();
    let access = request.seeds.access().expecting(source.choice.id);
    let endpoint = access.endpoint(address, NODE_TIMEOUT);
    let pending = Handshake::start(&endpoint, options).await?;
    let late = |what| {
        move |after| CaptureError::Late {
            address,
            what,
            after,
        }
    };
    let begun = pending.full_resync();
    let mut stream = within(FORK_PATIENCE, late("taken its snapshot"), begun).await?;
    let forked_at = Timestamp::now();
    progress.send_modify(|seen| seen.forked_at = Some(forked_at));
    let announced = stream.announced();
    within(SAVE_PATIENCE, late("begun to send its snapshot"), announced).await?;
    Ok((source, stream, forked_at))
}

/// Bounds a wait that lasts as long as the server says that it lives.
async fn within<T>(
    limit: Duration,
    late: impl FnOnce(Duration) -> CaptureError,
    wait: impl Future<Output = Result<T, ReplicationError>>,
) -> Result<T, CaptureError> {
    match timeout(limit, wait).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(late(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[tokio::test]
    async fn a_server_that_only_keeps_alive_is_given_up() {
        let address = SocketAddr::from(([10, 0, 0, 1], 6379));
        let late = |after| CaptureError::Late {
            address,
            what: "taken its snapshot",
            after,
        };
        let never = std::future::pending::<Result<(), ReplicationError>>();
        let error = within(Duration::from_millis(10), late, never)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "SnapshotLate");
        assert_eq!(
            within(FORK_PATIENCE, late, async { Ok(7) }).await.unwrap(),
            7
        );
        let words = late(FORK_PATIENCE).to_string();
        assert!(
            words.starts_with("10.0.0.1:6379 has not taken its snapshot within 10 minutes"),
            "{words}"
        );
    }
}
