//! A real S3 server of files in a directory, in this process or (`s3-server`) in one of its own, and a front that fails on
//! demand.

mod abandoned;
mod tls;
mod uploads;

pub use abandoned::leave_upload;
pub use tls::Authority;

use anyhow::Context;
use axum::{
    Router,
    body::{Body, Bytes},
    error_handling::HandleError,
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use common::storage::{
    AddressRule, Credentials, Location, ObjectStore, StorageArguments, StoreAccess, StoreIdentity,
    location::Given,
};
use futures::StreamExt;
use ipnet::IpNet;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use std::{
    fs, io,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uploads::{Uploads, as_at_aws};

/// How long connections may take to end after a stop.
const GRACE: Duration = Duration::from_secs(5);

/// An access key and its secret.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
}

/// A running S3 server.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    scheme: &'static str,
    root: PathBuf,
    faults: Faults,
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl S3Server {
    /// Serves the directory at this address (port 0: a free one), by TLS with a certificate of `authority`. `root` and the
    /// buckets are made if they are missing.
    pub async fn start(
        listen: SocketAddr,
        root: &Path,
        key: &AccessKey,
        buckets: &[String],
        authority: Option<&Authority>,
    ) -> anyhow::Result<Self> {
        for bucket in buckets {
            let directory = root.join(bucket);
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create the bucket {}", directory.display()))?;
        }
        fs::create_dir_all(root)?;
        let files = FileSystem::new(root)
            .map_err(|error| anyhow::anyhow!("cannot serve {}: {error:?}", root.display()))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(&key.id, key.secret.as_str()));
        let faults = Faults::default();
        let service = HandleError::new(builder.build(), |error| async move {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}"))
        });
        let router = Router::new()
            .fallback_service(service)
            .layer(from_fn_with_state(Uploads::default(), as_at_aws))
            .layer(from_fn_with_state(faults.clone(), fail_on_demand));
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = if let Some(authority) = authority {
            let serve = axum::serve(authority.listen(listener), router);
            tokio::spawn(serve.with_graceful_shutdown(stopped).into_future())
        } else {
            let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
            let serve = axum::serve(listener, router);
            tokio::spawn(serve.with_graceful_shutdown(stopped).into_future())
        };
        Ok(Self {
            address,
            scheme: if authority.is_some() { "https" } else { "http" },
            root: root.to_owned(),
            faults,
            stop,
            serving,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` or `https://` address for clients.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The file that holds an object.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// Files of multipart uploads that were neither completed nor aborted.
    pub fn unfinished_uploads(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(".upload") {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What goes wrong from now on.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Ends it: connections that are idle at once, others when their request is answered, all after some seconds.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let abort = self.serving.abort_handle();
        if let Ok(ended) = tokio::time::timeout(GRACE, self.serving).await {
            return ended?.context("the S3 server failed");
        }
        abort.abort();
        Ok(())
    }
}

/// What goes wrong, and with which requests. Shared with the server; empty at the start.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    rules: Arc<Mutex<Vec<Rule>>>,
}

#[derive(Debug)]
struct Rule {
    on: On,
    fault: Fault,
    left: usize,
}

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Every request.
    Any,
    /// Upload of one part.
    Part,
    /// Upload of an object by a single request.
    Put,
    /// Beginning of a multipart upload.
    Begin,
    /// Completion of a multipart upload.
    Complete,
    /// Listing of unfinished multipart uploads.
    Uploads,
    /// Read of an object or of a range.
    Get,
}

/// Ways to fail.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// An S3 error answer.
    Answer(StatusCode, &'static str),
    /// The request is taken in, and never answered.
    Stall,
    /// The request is taken in half, then the connection ends without an answer.
    Break,
    /// The request is carried out, but its answer gets lost.
    LoseAnswer,
    /// It takes this much longer.
    Slow(Duration),
}

impl Faults {
    /// The next `times` requests of this kind fail in this way.
    pub fn add(&self, on: On, fault: Fault, times: usize) {
        let rule = Rule {
            on,
            fault,
            left: times,
        };
        self.lock().push(rule);
    }

    /// Nothing fails any more.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many of the failures that were asked for have not happened yet.
    pub fn left(&self) -> usize {
        self.lock().iter().map(|rule| rule.left).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, request: &Request) -> Option<Fault> {
        let kind = kind(request);
        let mut rules = self.lock();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.left > 0 && (rule.on == On::Any || Some(rule.on) == kind))?;
        rule.left -= 1;
        Some(rule.fault)
    }
}

fn kind(request: &Request) -> Option<On> {
    let query = request.uri().query().unwrap_or_default();
    match *request.method() {
        Method::PUT if query.contains("partNumber=") => Some(On::Part),
        Method::PUT => Some(On::Put),
        Method::POST if query.starts_with("uploads") => Some(On::Begin),
        Method::POST if query.contains("uploadId=") => Some(On::Complete),
        Method::GET if uploads::is_listing(query) => Some(On::Uploads),
        Method::GET if !query.contains("list-type") => Some(On::Get),
        _ => None,
    }
}

async fn fail_on_demand(State(faults): State<Faults>, request: Request, next: Next) -> Response {
    match faults.of(&request) {
        None => next.run(request).await,
        Some(Fault::Answer(status, code)) => {
            // Reading the body first keeps the connection whole, as a real server does for small bodies.
            take_in(request, usize::MAX).await;
            refusal(status, code)
        }
        Some(Fault::Stall) => {
            take_in(request, usize::MAX).await;
            std::future::pending().await
        }
        Some(Fault::Break) => {
            let length = request.headers().get("content-length");
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            take_in(request, length.unwrap_or(0) / 2).await;
            broken_answer()
        }
        Some(Fault::LoseAnswer) => {
            drop(next.run(request).await);
            broken_answer()
        }
        Some(Fault::Slow(time)) => {
            tokio::time::sleep(time).await;
            next.run(request).await
        }
    }
}

/// An S3 error answer.
fn refusal(status: StatusCode, code: &str) -> Response {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on demand of a test</Message></Error>"
    );
    (status, body).into_response()
}

async fn take_in(request: Request, bytes: usize) {
    let mut body = request.into_body().into_data_stream();
    let mut taken = 0;
    while taken < bytes
        && let Some(Ok(piece)) = body.next().await
    {
        taken += piece.len();
    }
}

/// A body that fails before its first byte: the server ends the connection.
fn broken_answer() -> Response {
    let broken = futures::stream::once(async { Err::<Bytes, _>(io::Error::other("broken")) });
    Body::from_stream(broken).into_response()
}

/// A server in this process with one bucket in a directory of its own, removed at the end.
#[derive(Debug)]
pub struct TestBucket {
    server: S3Server,
    directory: PathBuf,
    key: AccessKey,
}

impl TestBucket {
    /// Name of the bucket.
    pub const NAME: &'static str = "backups";

    /// Starts a server at a free port of 127.0.0.1.
    pub async fn start() -> anyhow::Result<Self> {
        Self::serve(directory()?, None).await
    }

    /// The same by TLS, with an authority of its own that no image knows.
    pub async fn start_tls() -> anyhow::Result<(Self, Authority)> {
        let directory = directory()?;
        let authority = Authority::create(&directory)?;
        Ok((Self::serve(directory, Some(&authority)).await?, authority))
    }

    async fn serve(directory: PathBuf, authority: Option<&Authority>) -> anyhow::Result<Self> {
        let key = AccessKey {
            id: "TESTACCESSKEY".to_owned(),
            secret: "test-secret-that-must-not-show".to_owned(),
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let buckets = [Self::NAME.to_owned()];
        let server = S3Server::start(listen, &directory, &key, &buckets, authority).await?;
        Ok(Self {
            server,
            directory,
            key,
        })
    }

    /// The server that holds the bucket, to look at its files and break it.
    pub fn server(&self) -> &S3Server {
        &self.server
    }

    /// Access key and secret that the server takes.
    pub fn key(&self) -> &AccessKey {
        &self.key
    }

    /// The bucket as a place, without a prefix.
    pub fn location(&self) -> anyhow::Result<Location> {
        let endpoint = self.server.endpoint();
        let given = Given {
            bucket: Self::NAME,
            endpoint: Some(&endpoint),
            ..Given::default()
        };
        Ok(Location::new(&given)?)
    }

    /// The right credentials.
    pub fn credentials(&self) -> Credentials {
        Credentials::new(self.key.id.clone(), self.key.secret.clone().into(), None)
    }

    /// The bucket, ready for requests.
    pub async fn store(&self) -> anyhow::Result<ObjectStore> {
        Ok(ObjectStore::connect(self.location()?, on_loopback(self.credentials())).await)
    }
}

impl Drop for TestBucket {
    fn drop(&mut self) {
        self.server.serving.abort();
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "a test's bucket stays behind");
        }
    }
}

/// The server as a process of its own (`s3-server`), for what is measured: its memory and time do not count as ours. Killed
/// and its directory removed at the end; killed as well when the thread that started it ends in any other way.
#[derive(Debug)]
pub struct S3Process {
    child: Child,
    endpoint: String,
    directory: PathBuf,
    key: AccessKey,
}

impl S3Process {
    /// Runs this binary with one bucket, [`TestBucket::NAME`], at a free port of 127.0.0.1.
    pub fn start(binary: &Path) -> anyhow::Result<Self> {
        let directory = directory()?;
        let key = AccessKey {
            id: "TESTACCESSKEY".to_owned(),
            secret: "test-secret-that-must-not-show".to_owned(),
        };
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(binary)
            .args(["--listen", "127.0.0.1:0", "--bucket", TestBucket::NAME])
            .args(["--access-key", &key.id, "--secret-key", &key.secret])
            .arg("--root")
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run setpriv (of util-linux)")?;
        let output = child.stdout.take().context("no output to read")?;
        let mut process = Self {
            child,
            endpoint: String::new(),
            directory,
            key,
        };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(
            line.starts_with("http://"),
            "{} said {line:?}",
            binary.display()
        );
        line.trim().clone_into(&mut process.endpoint);
        Ok(process)
    }

    /// `http://` address for clients.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Access key and secret that the server takes.
    pub fn key(&self) -> &AccessKey {
        &self.key
    }

    /// The file that holds an object.
    pub fn file(&self, key: &str) -> PathBuf {
        self.directory.join(TestBucket::NAME).join(key)
    }

    /// The bucket, ready for requests.
    pub async fn store(&self) -> anyhow::Result<ObjectStore> {
        let location = Location::new(&Given {
            bucket: TestBucket::NAME,
            endpoint: Some(&self.endpoint),
            ..Given::default()
        })?;
        let secret = self.key.secret.clone().into();
        let credentials = Credentials::new(self.key.id.clone(), secret, None);
        Ok(ObjectStore::connect(location, on_loopback(credentials)).await)
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait().map(drop));
        let removed = fs::remove_dir_all(&self.directory);
        if let Err(error) = killed.and(removed) {
            tracing::warn!(%error, pid = self.child.id(), "an S3 server stays behind");
        }
    }
}

/// How the tests reach their stores. These listen on loopback, which the ordinary rule refuses: the list allows it, as an
/// operator does with `--allowed-endpoint-networks`.
pub fn on_loopback(credentials: Credentials) -> StoreAccess {
    StoreAccess {
        identity: StoreIdentity::AccessKey(credentials),
        addresses: AddressRule::of(loopback()),
        authority: None,
    }
}

/// The same for a controller that is started by a test.
pub fn loopback_allowed() -> StorageArguments {
    StorageArguments {
        allowed_endpoint_networks: loopback(),
        ..StorageArguments::default()
    }
}

fn loopback() -> Vec<IpNet> {
    vec![IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST))]
}

/// A new directory below the system's place for temporary files.
fn directory() -> io::Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("s3-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}
