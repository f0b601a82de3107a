//! From `main` to the end of the process.

use super::{
    arguments::CommonArguments,
    client::{self, Clients, ConnectError},
    events::Events,
    health::{self, Health},
    metrics::Metrics,
    program::Program,
    shutdown,
    tasks::{TaskEnd, Tasks},
    telemetry::{self, TelemetryError},
};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, runtime::watcher};
use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Any error that ends the process.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long the work may take to end after SIGTERM. With [`RETURN_TIME`] it stays below the 30 s that Kubernetes gives.
pub const DRAIN_TIME: Duration = Duration::from_secs(20);
/// How long giving the leases back may take after that.
pub const RETURN_TIME: Duration = Duration::from_secs(5);

/// What every part of a running controller needs. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    /// What runs.
    pub program: Program,
    /// The Kubernetes client.
    pub client: Client,
    /// The client of the leases that must be renewed in time: every request has a connection of its own.
    pub lease_client: Client,
    /// The common arguments.
    pub arguments: Arc<CommonArguments>,
    /// The name of this replica.
    pub identity: Arc<str>,
    /// Namespace of the controller's own leases.
    pub lease_namespace: Arc<str>,
    /// Cancelled when the process is to end: work stops.
    pub shutdown: CancellationToken,
    /// Probes.
    pub health: Health,
    /// Metrics.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
    keeping: Arc<Keeping>,
}

/// What outlives the work: leases are kept until the last unit has been released.
#[derive(Default)]
struct Keeping {
    end: CancellationToken,
    tracker: TaskTracker,
    tasks: Mutex<Vec<Tasks>>,
    died: CancellationToken,
}

/// Why the process ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No logging.
    #[error("cannot set up logging")]
    Telemetry(#[from] TelemetryError),
    /// No threads.
    #[error("cannot start threads")]
    Threads(#[source] std::io::Error),
    /// No signals.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// No client.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No port.
    #[error("cannot listen on {address}: give another --listen")]
    Listen {
        /// As given.
        address: SocketAddr,
        /// What the operating system reports.
        source: std::io::Error,
    },
    /// The program said why.
    #[error("the program failed")]
    Failed(#[source] BoxError),
    /// The program's future ended or panicked before shutdown.
    #[error("the program ended before shutdown")]
    EndedEarly,
    /// A background part (lease keeper, probes) panicked.
    #[error("a background part died")]
    BackgroundDied,
}

impl Runtime {
    /// A runtime around its clients. [`run`] makes one; tests may.
    pub fn new(
        program: Program,
        arguments: CommonArguments,
        clients: impl Into<Clients>,
        events: Events,
    ) -> Self {
        let Clients { requests, leases } = clients.into();
        Self {
            program,
            client: requests,
            lease_client: leases,
            identity: arguments.identity().into(),
            lease_namespace: arguments.lease_namespace().into(),
            arguments: Arc::new(arguments),
            shutdown: CancellationToken::new(),
            health: Health::default(),
            metrics: Metrics::new(program),
            events,
            keeping: Arc::default(),
        }
    }

    /// The API of a namespaced kind, in the watched namespace or in all.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.arguments.watch_namespace.as_str() {
            "" => Api::all(self.client.clone()),
            namespace => Api::namespaced(self.client.clone(), namespace),
        }
    }

    /// Configuration of a watch; add a label selector where possible.
    pub fn watch(&self) -> watcher::Config {
        watcher::Config::default().timeout(self.arguments.watch_timeout_seconds)
    }

    /// A set of at most `limit` supervised tasks, joined at shutdown. `ended` is called with the name and end of each.
    pub fn tasks(
        &self,
        limit: usize,
        ended: impl Fn(&str, &TaskEnd) + Send + Sync + 'static,
    ) -> Tasks {
        let tasks = Tasks::new(limit, self.shutdown.clone(), self.metrics.clone(), ended);
        let mut kept = self.kept_tasks();
        kept.push(tasks.clone());
        tasks
    }

    /// Runs a background part that outlives the work; it ends after its token is cancelled. If it panics, the process ends.
    pub fn keep<F>(&self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = tokio::spawn(part(self.keeping.end.clone()));
        let died = self.keeping.died.clone();
        self.keeping.tracker.spawn(async move {
            if task.await.is_err() {
                tracing::error!(part = name, "a background part died");
                died.cancel();
            }
        });
    }

    /// Ends the process in order, after `shutdown` was cancelled: tasks are joined, then leases are released.
    pub async fn finish(&self, drain: Duration) {
        let kept = self.kept_tasks().clone();
        let deadline = tokio::time::Instant::now() + drain;
        for tasks in kept {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            for late in tasks.join(left).await {
                tracing::warn!(task = late, "did not stop in time and was aborted");
            }
        }
        self.keeping.end.cancel();
        self.keeping.tracker.close();
        if tokio::time::timeout(RETURN_TIME, self.keeping.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!("leases were not released in time; they expire");
        }
    }

    fn kept_tasks(&self) -> std::sync::MutexGuard<'_, Vec<Tasks>> {
        self.keeping
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a controller until SIGTERM or SIGINT: `start` gets the [`Runtime`] and returns the work, a future that ends after
/// `shutdown` is cancelled. Then tasks are joined, then leases are released.
pub fn run<F, Fut>(program: Program, arguments: &CommonArguments, start: F) -> ExitCode
where
    F: FnOnce(Runtime) -> Fut,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let threads = usize::from(arguments.worker_threads);
    exit(enter(arguments, threads, || {
        serve(program, arguments.clone(), start)
    }))
}

/// Runs one short command with a client, without probes, leases or metrics.
pub fn run_once<F, Fut>(program: Program, arguments: &CommonArguments, command: F) -> ExitCode
where
    F: FnOnce(Client) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    exit(enter(arguments, 1, || async {
        client::install_crypto_provider()?;
        let clients = client::connect(program, arguments.watch_timeout()).await?;
        command(clients.requests).await.map_err(RunError::Failed)
    }))
}

fn enter<Fut>(
    arguments: &CommonArguments,
    threads: usize,
    work: impl FnOnce() -> Fut,
) -> Result<(), RunError>
where
    Fut: Future<Output = Result<(), RunError>>,
{
    telemetry::install(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(RunError::Threads)?;
    let result = runtime.block_on(work());
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn exit(result: Result<(), RunError>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let text = telemetry::chain(&error);
    if matches!(error, RunError::Telemetry(_)) {
        eprintln!("{text}");
    }
    tracing::error!(error = text, "ended");
    ExitCode::FAILURE
}

async fn serve<F, Fut>(
    program: Program,
    arguments: CommonArguments,
    start: F,
) -> Result<(), RunError>
where
    F: FnOnce(Runtime) -> Fut,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    client::install_crypto_provider()?;
    let clients = client::connect(program, arguments.watch_timeout()).await?;
    // Without a name given it is random: found once.
    let identity = arguments.identity();
    let (events, publisher) = Events::start(clients.requests.clone(), program.name, &identity);
    let arguments = CommonArguments {
        identity: Some(identity),
        ..arguments
    };
    let runtime = Runtime::new(program, arguments, clients, events);
    shutdown::on_signal(runtime.shutdown.clone()).map_err(RunError::Signals)?;
    let probes = listen(&runtime).await?;
    tracing::info!(
        program = program.name,
        version = program.version,
        identity = &*runtime.identity,
        "started"
    );
    let work = tokio::spawn(start(runtime.clone()));
    let result = attend(&runtime, work).await;
    probes.cancel();
    drop(runtime);
    // The last Events are still published, if that goes quickly.
    let _ = tokio::time::timeout(Duration::from_secs(2), publisher).await;
    tracing::info!("stopped");
    result
}

/// Opens the port for probes and metrics and answers in the background until the returned token is cancelled.
async fn listen(runtime: &Runtime) -> Result<CancellationToken, RunError> {
    let address = runtime.arguments.listen;
    let failed = |source| RunError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    tracing::info!(address = %bound, "serving /livez, /readyz and /metrics");
    let end = CancellationToken::new();
    let server = health::serve(
        listener,
        runtime.health.clone(),
        runtime.metrics.clone(),
        end.clone(),
    );
    let (ended, died) = (end.clone(), runtime.keeping.died.clone());
    tokio::spawn(async move {
        let result = server.await;
        if !ended.is_cancelled() {
            tracing::error!(?result, "the server of probes ended");
            died.cancel();
        }
    });
    Ok(end)
}

/// Waits for the end of the work, before shutdown or after it, and ends everything else in order.
async fn attend(
    runtime: &Runtime,
    mut work: JoinHandle<Result<(), BoxError>>,
) -> Result<(), RunError> {
    let early = tokio::select! {
        ended = &mut work => Some(match ended {
            Ok(Ok(())) if runtime.shutdown.is_cancelled() => Ok(()),
            Ok(Ok(())) | Err(_) => Err(RunError::EndedEarly),
            Ok(Err(error)) => Err(RunError::Failed(error)),
        }),
        () = runtime.keeping.died.cancelled() => None,
        () = runtime.shutdown.cancelled() => None,
    };
    let died = runtime.keeping.died.is_cancelled();
    runtime.shutdown.cancel();
    runtime.health.ending();
    let begun = tokio::time::Instant::now();
    let result = match early {
        Some(result) => result,
        None => match tokio::time::timeout(DRAIN_TIME, &mut work).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(RunError::Failed(error)),
            Ok(Err(_)) => Err(RunError::EndedEarly),
            Err(_) => {
                tracing::warn!("reconciles under way did not end in time");
                work.abort();
                Ok(())
            }
        },
    };
    runtime
        .finish(DRAIN_TIME.saturating_sub(begun.elapsed()))
        .await;
    if died {
        return Err(RunError::BackgroundDied);
    }
    result
}
