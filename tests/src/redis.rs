//! Real redis-server processes on loopback: each with an address, a directory and a log of its own.
//!
//! A server ends with the value that stands for it, and with the thread that started it, however that ends: nothing
//! is left behind. Its directory goes with it; its log is printed when a test fails.

mod cluster;
mod samples;

pub use cluster::RedisCluster;
pub use samples::{FUNCTIONS, Sample, samples};

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue};
use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};

/// Longest wait for a server to start or to end, and for a state to come about.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a state.
const LOOK: Duration = Duration::from_millis(10);

/// Longest wait for one reply.
const REPLY: Duration = Duration::from_secs(30);

/// Counts the servers of this process: addresses and directories derive from it.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A redis-server process.
pub struct RedisServer {
    process: Option<Child>,
    directory: PathBuf,
    address: SocketAddr,
    cluster: bool,
    options: Vec<(String, String)>,
}

impl RedisServer {
    /// Starts a standalone server with these settings besides the usual ones, for example `("appendonly", "yes")`.
    pub async fn standalone(options: &[(&str, &str)]) -> Result<Self> {
        Self::start(false, options).await
    }

    /// Starts a server in cluster mode that knows no other and owns no slot.
    pub async fn cluster_node(options: &[(&str, &str)]) -> Result<Self> {
        Self::start(true, options).await
    }

    async fn start(cluster: bool, options: &[(&str, &str)]) -> Result<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("redis-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let address = free_address()?;
        let mut server = Self {
            process: None,
            directory,
            address,
            cluster,
            options,
        };
        server.launch(None).await?;
        Ok(server)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its working directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// A connection of its own to the server.
    pub async fn connect(&self) -> Result<MultiplexedConnection> {
        let client = Client::open(format!("redis://{}", self.address))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(REPLY));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .with_context(|| format!("connecting to {}", self.address))
    }

    /// Sends one command, given as words separated by spaces, over a connection of its own.
    pub async fn call<T: FromRedisValue>(&self, words: &str) -> Result<T> {
        let mut command = Cmd::new();
        for word in words.split_whitespace() {
            command.arg(word);
        }
        command
            .query_async(&mut self.connect().await?)
            .await
            .with_context(|| format!("{words} at {}", self.address))
    }

    /// One field of INFO.
    pub async fn info(&self, field: &str) -> Result<String> {
        let text: String = self.call("INFO everything").await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value
            .map(str::to_owned)
            .with_context(|| format!("{} has no {field} in INFO", self.address))
    }

    /// Ends the server at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("killing redis-server")?;
            process
                .wait()
                .context("waiting for the end of redis-server")?;
        }
        Ok(())
    }

    /// Ends the server in good order: SIGTERM, as Kubernetes does.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let id = process.id().to_string();
        let sent = Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .context("running kill")?;
        ensure!(sent.success(), "kill -TERM {id} failed");
        let deadline = Instant::now() + PATIENCE;
        while process
            .try_wait()
            .context("waiting for redis-server")?
            .is_none()
        {
            ensure!(
                Instant::now() < deadline,
                "{} does not end:\n{}",
                self.address,
                tail(&self.log())
            );
            sleep(LOOK).await;
        }
        self.process = None;
        Ok(())
    }

    /// Starts the server again, where it was, with what is in its directory.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.launch(Some(self.address)).await
    }

    /// Runs the process until it answers. A port that somebody took since it was found free is replaced, unless fixed.
    async fn launch(&mut self, fixed: Option<SocketAddr>) -> Result<()> {
        for _ in 0..10 {
            self.process = Some(self.spawn()?);
            if self.ready().await? {
                return Ok(());
            }
            self.kill()?;
            ensure!(
                fixed.is_none() && self.log().contains("Address already in use"),
                "redis-server at {} ended:\n{}",
                self.address,
                tail(&self.log())
            );
            self.address = free_address()?;
        }
        bail!("found no free port for redis-server")
    }

    fn spawn(&self) -> Result<Child> {
        let ip = self.address.ip().to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args([
                "--port",
                &self.address.port().to_string(),
                "--bind",
                &ip,
                "--bind-source-addr",
                &ip,
            ])
            .args([
                "--dir",
                &self.directory.to_string_lossy(),
                "--logfile",
                "log",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .args([
                "--repl-diskless-sync-delay",
                "0",
                "--enable-debug-command",
                "yes",
                "--protected-mode",
                "no",
            ]);
        if self.cluster {
            command
                .args([
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    "2000",
                    "--cluster-announce-ip",
                    &ip,
                ])
                .args(["--cluster-config-file", "nodes.conf"]);
        }
        for (name, value) in &self.options {
            command.arg(format!("--{name}")).arg(value);
        }
        let spawned = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        spawned.context(
            "running redis-server (Debian package redis-server, and setpriv of util-linux)",
        )
    }

    /// Waits until the server answers and has loaded its data; false if it ended instead.
    async fn ready(&mut self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(process) = &mut self.process
                && process
                    .try_wait()
                    .context("looking at redis-server")?
                    .is_some()
            {
                return Ok(false);
            }
            let listening = tokio::net::TcpStream::connect(self.address).await.is_ok();
            if listening && self.call::<String>("PING").await.is_ok() {
                return Ok(true);
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not start:\n{}",
                self.address,
                tail(&self.log())
            );
            sleep(LOOK).await;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- log of redis-server {} ---\n{}",
                self.address,
                tail(&self.log())
            );
        }
        let _ = self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Waits until the condition holds, and says what did not come about.
pub async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = condition().await;
        match outcome {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waiting until {what}")));
            }
            Ok(false) if Instant::now() >= deadline => {
                bail!("after {PATIENCE:?} it is not so that {what}")
            }
            Ok(false) | Err(_) => sleep(LOOK).await,
        }
    }
}

/// A loopback address nobody listens at, with the cluster bus port 10000 above free as well.
///
/// Ports stay below the range the system gives to outgoing connections.
fn free_address() -> Result<SocketAddr> {
    let seed = std::process::id().wrapping_mul(7919);
    for _ in 0..1000 {
        let number = seed.wrapping_add(STARTED.fetch_add(1, Ordering::Relaxed).wrapping_mul(13));
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, u8::try_from(1 + number % 200)?));
        let port = u16::try_from(10_500 + number / 7 % 10_000)?;
        let free = |port| TcpListener::bind((ip, port)).is_ok();
        if free(port) && free(port + 10_000) {
            return Ok(SocketAddr::new(ip, port));
        }
    }
    bail!("no free port on loopback")
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines
        .get(lines.len().saturating_sub(40)..)
        .unwrap_or_default()
        .join("\n")
}
