//! A replica of a controller in threads of its own, which can end like a process: in order or at once.

use crate::{api_proxy, kubernetes::api_server};
use anyhow::{Error, Result, anyhow, ensure};
use common::runtime::{BoxError, Runtime};
use std::{net::SocketAddr, sync::mpsc, thread, time::Duration};

/// How long an orderly end may take.
const GRACE: Duration = Duration::from_secs(20);

/// How a replica ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaEnd {
    /// As after SIGTERM.
    Orderly,
    /// As after SIGKILL: nothing is released.
    Kill,
}

/// What distinguishes a replica.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// Name of the controller.
    pub program: &'static str,
    /// Name of the replica.
    pub identity: String,
    /// The namespace that is watched and holds the Leases.
    pub namespace: String,
    /// How long a Lease lasts.
    pub lease: Duration,
    /// The proxy between the replica and the API server.
    pub proxy: Option<SocketAddr>,
}

/// A running replica. One that is dropped ends at once.
pub struct Replica {
    end: mpsc::Sender<ReplicaEnd>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Replica {
    /// Starts the controller `run`, which works until shutdown.
    pub fn start<Run, Work>(settings: ReplicaSettings, run: Run) -> Self
    where
        Run: FnOnce(Runtime) -> Work + Send + 'static,
        Work: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || live(&settings, run, &ended));
        Self { end, thread }
    }

    /// Ends the replica; fails if it had ended before.
    pub fn end(self, how: ReplicaEnd) -> Result<()> {
        let _ = self.end.send(how);
        self.thread
            .join()
            .map_err(|_| anyhow!("the replica panicked"))?
    }
}

fn live<Run, Work>(
    settings: &ReplicaSettings,
    run: Run,
    end: &mpsc::Receiver<ReplicaEnd>,
) -> Result<()>
where
    Run: FnOnce(Runtime) -> Work,
    Work: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let runtime = tokio.block_on(async {
        let server = match settings.proxy {
            Some(address) => api_proxy::through(address).await?,
            None => api_server().await?,
        };
        server.runtime(
            settings.program,
            &settings.identity,
            &settings.namespace,
            settings.lease,
        )
    })?;
    let work = tokio.spawn(run(runtime.clone()));
    let how = end.recv().unwrap_or(ReplicaEnd::Kill);
    ensure!(!work.is_finished(), "{} ended early", settings.identity);
    if how == ReplicaEnd::Orderly {
        tokio.block_on(async {
            runtime.shutdown.cancel();
            let ended = work.await?;
            runtime.finish(GRACE).await;
            ended.map_err(Error::from_boxed)
        })?;
    }
    tokio.shutdown_background();
    Ok(())
}
