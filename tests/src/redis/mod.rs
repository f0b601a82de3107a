//! Real redis-server processes on loopback: each with an address, a directory and a log of its own.
//!
//! A server ends with the value that stands for it, and with the thread that started it, however that ends. Its directory goes
//! with it; the end of its log is printed, which the test runner shows when the test fails.

mod cluster;
mod commands;
mod encryption;
pub mod own_users;
mod pod;
mod pods;
mod samples;

pub use cluster::TestCluster;
pub use commands::{executed, nothing_destroyed};
pub use pod::{MountedUsers, PodFiles, PodStorage};
pub use pods::{NODE_TIMEOUT, PodCluster, ShardSlots};
pub use samples::{Sample, functions, samples};

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, FromRedisValue};
use anyhow::{Context, Result, bail, ensure};
use common::cluster::{seeds::Seeds, slots::SlotRange, topology::NodeId, transport::Transport};
use crds::TLS_PORT;

use crate::login::{self, ClientLogin};
use crate::servers::{self, ServerProgram};
use crate::wait::{PATIENCE, eventually, within};

/// Longest wait for one reply.
const REPLY: Duration = Duration::from_secs(30);

/// Counts the servers of this process: addresses and directories derive from it.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// How the process is started.
enum Launch {
    /// This program, with these options on the command line.
    Options {
        cluster: bool,
        options: Vec<(String, String)>,
    },
    /// By the start script of the product, as in a pod.
    Pod(PodFiles),
}

/// A redis-server process.
pub struct RedisServer {
    process: Option<Child>,
    root: PathBuf,
    data: PathBuf,
    address: SocketAddr,
    launch: Launch,
    program: ServerProgram,
    quiet: bool,
    login: Mutex<Option<ClientLogin>>,
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
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let launch = Launch::Options { cluster, options };
        let mut server = Self::prepare(free_address()?, launch)?;
        server.launch(false).await?;
        Ok(server)
    }

    /// A server of a pod that is not running yet.
    pub fn pod(address: SocketAddr, files: PodFiles) -> Result<Self> {
        Self::prepare(address, Launch::Pod(files))
    }

    fn prepare(address: SocketAddr, launch: Launch) -> Result<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("redis-{}-{number}", std::process::id()));
        let data = root.join("data");
        fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        Ok(Self {
            process: None,
            root,
            data,
            address,
            launch,
            program: servers::selected()?,
            quiet: false,
            login: Mutex::default(),
        })
    }

    /// Which server it is.
    pub fn program(&self) -> &ServerProgram {
        &self.program
    }

    /// Does not print its log at its end: for programs whose output is for people.
    pub fn quiet(&mut self) {
        self.quiet = true;
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether its process was started and not ended by this value.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// What is mounted as the users of the server from its next start on.
    pub fn mount(&mut self, users: MountedUsers) {
        if let Launch::Pod(files) = &mut self.launch {
            files.users = users;
        }
    }

    /// Sets the program that a server which is down runs from its next start on.
    pub fn set_program(&mut self, program: &ServerProgram) {
        self.program.clone_from(program);
    }

    /// Gives a server that is down another address.
    pub fn set_address(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Its working directory.
    pub fn directory(&self) -> &Path {
        &self.data
    }

    /// Takes the data of a server that is down away.
    pub fn wipe(&self) -> Result<()> {
        fs::remove_dir_all(&self.data)?;
        Ok(fs::create_dir(&self.data)?)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// From now on, connections of the test log in so.
    pub fn log_in(&self, login: Option<ClientLogin>) {
        *self.login() = login;
    }

    fn login(&self) -> MutexGuard<'_, Option<ClientLogin>> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of its own to the server.
    pub async fn connect(&self) -> Result<MultiplexedConnection> {
        let login = self.login().clone();
        let address = self.client_address();
        let connected = login::connect(address, login.as_ref(), REPLY).await;
        connected.with_context(|| format!("connecting to {address}"))
    }

    /// Where clients connect.
    pub fn client_address(&self) -> SocketAddr {
        match self.login().as_ref().map(|login| &login.transport) {
            Some(Transport::Tls(_)) => SocketAddr::new(self.address.ip(), TLS_PORT),
            Some(Transport::Plain) | None => self.address,
        }
    }

    /// Puts files where the pod of the server has its certificates, as a kubelet does after the Secret has changed.
    pub fn mount_certificates(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let folder = self.root.join("tls");
        fs::create_dir_all(&folder)?;
        for (name, content) in files {
            fs::write(folder.join(name), content)?;
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if !files.contains_key(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes them away: the pod that comes next mounts none.
    pub fn unmount_certificates(&self) -> Result<()> {
        fs::remove_dir_all(self.root.join("tls"))?;
        Ok(())
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

    /// Gives it slots that have no primary.
    pub async fn add_slots(&self, range: &SlotRange) -> Result<()> {
        if self.program.at_least(7, 0) {
            let (start, end) = (range.start(), range.end());
            return self
                .call(&format!("CLUSTER ADDSLOTSRANGE {start} {end}"))
                .await;
        }
        let slots: Vec<String> = range.slots().map(|slot| slot.to_string()).collect();
        self.call(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")))
            .await
    }

    /// The id of a server in cluster mode.
    pub async fn id(&self) -> Result<NodeId> {
        let id: String = self.call("CLUSTER MYID").await?;
        Ok(id.parse()?)
    }

    /// The server alone, as the pod and the status of a RedisCluster of one node would show it.
    pub async fn seeds(&self) -> Result<Seeds> {
        Ok(Seeds::new([self.address], [self.id().await?])?)
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
            own_users::print_refusals(self.address);
            // As with a container, what it has forked ends too: a child of Redis 8 sends its snapshot without the server.
            let children = children(process.id());
            process.kill().context("killing redis-server")?;
            for child in children {
                let mut kill = Command::new("kill");
                let _ = kill.args(["-KILL", &child]).stderr(Stdio::null()).status();
            }
            process
                .wait()
                .context("waiting for the end of redis-server")?;
        }
        Ok(())
    }

    /// Stops the process where it is (SIGSTOP), or lets it go on: connections stay open, and the kernel accepts more of them.
    pub fn suspend(&self, suspended: bool) -> Result<()> {
        let process = self.process.as_ref().context("the server is down")?;
        let signal = if suspended { "-STOP" } else { "-CONT" };
        let id = process.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status()?;
        ensure!(sent.success(), "kill {signal} {id} failed");
        Ok(())
    }

    /// Ends the server with SIGTERM, as Kubernetes does.
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
        eventually("redis-server has ended", async || {
            Ok(process
                .try_wait()
                .context("waiting for redis-server")?
                .is_some())
        })
        .await?;
        self.process = None;
        Ok(())
    }

    /// Starts the server again, where it was, with what is in its directory.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.launch(true).await
    }

    /// Starts a server that is down with these settings on top, and does not wait for it.
    pub fn start_unattended(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        self.process = Some(self.spawn(settings)?);
        Ok(())
    }

    /// Runs the process until it answers. A port that was taken since it was found free is replaced, unless the address is fixed.
    async fn launch(&mut self, fixed: bool) -> Result<()> {
        for _ in 0..10 {
            self.process = Some(self.spawn(&[])?);
            if self.ready().await? {
                return Ok(());
            }
            self.kill()?;
            ensure!(
                !fixed && self.log().contains("Address already in use"),
                "redis-server at {} ended:\n{}",
                self.address,
                tail(&self.log())
            );
            self.address = free_address()?;
        }
        bail!("found no free port for redis-server")
    }

    fn spawn(&self, settings: &[(&str, &str)]) -> Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.root.join("log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        match &self.launch {
            Launch::Options { cluster, options } => {
                command.arg(&self.program.path).args(self.options(*cluster));
                if *cluster {
                    command.args(own_users::arguments(&self.program));
                }
                let options = options
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()));
                let known = options.filter(|(name, _)| knows(&self.program, name));
                for (name, value) in known.chain(settings.iter().copied()) {
                    command.arg(format!("--{name}")).arg(value);
                }
            }
            Launch::Pod(files) => {
                let script = files.write(self, settings)?;
                command.args(["sh", "-c", &script]);
                command.env("PATH", self.search_path()?);
                command.env("POD_IP", self.address.ip().to_string());
                command.envs(PodFiles::identity(self.address));
            }
        }
        let spawned = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        spawned.context(
            "running redis-server (Debian package redis-server, and setpriv of util-linux)",
        )
    }

    /// What Kubernetes runs before it ends the server of a pod, to be run while the server runs.
    pub fn stop_script(&self) -> Result<Command> {
        let Launch::Pod(files) = &self.launch else {
            bail!("{} is not the server of a pod", self.address);
        };
        let mut command = Command::new("sh");
        command.args(["-c", &files.stop_script(self)?]);
        command.env("PATH", self.search_path()?);
        Ok(command)
    }

    /// A program that comes with the server: it is the server under another name.
    pub fn tool(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(name);
        command.env("PATH", self.search_path()?);
        Ok(command)
    }

    /// The search path of a pod, in which the program is found under each name that the start script looks for.
    fn search_path(&self) -> Result<String> {
        let path = std::env::var("PATH").context("PATH is not set")?;
        if !self.program.path.is_absolute() {
            return Ok(path);
        }
        let folder = self.root.join("bin");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        for name in ["redis-server", "valkey-server", "redis-check-rdb"] {
            std::os::unix::fs::symlink(&self.program.path, folder.join(name))?;
        }
        Ok(format!("{}:{path}", folder.display()))
    }

    /// What every server of the harness gets, as lines of a configuration.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let (ip, port) = (self.address.ip(), self.address.port());
        let all = [
            ("port", port.to_string()),
            ("bind", ip.to_string()),
            ("bind-source-addr", ip.to_string()),
            ("enable-debug-command", "yes".to_owned()),
        ];
        let mut settings: Vec<_> = all
            .into_iter()
            .filter(|(name, _)| knows(&self.program, name))
            .collect();
        if !self.program.at_least(7, 0) {
            // Its statistics do not tell the subcommands of CLUSTER apart: see `executed`.
            settings.push(("slowlog-log-slower-than", "0".to_owned()));
            settings.push(("slowlog-max-len", commands::LOGGED.to_string()));
        }
        settings
    }

    fn options(&self, cluster: bool) -> Vec<String> {
        let ip = self.address.ip();
        let data = self.data.display();
        let mut options: Vec<String> = self
            .settings()
            .into_iter()
            .flat_map(|(name, value)| [format!("--{name}"), value])
            .collect();
        let mut words = format!(
            "--dir {data} --appendonly no --repl-diskless-sync-delay 0 --protected-mode no"
        );
        if cluster {
            words += " --cluster-enabled yes --cluster-node-timeout 2000 --cluster-config-file nodes.conf";
            words += " --cluster-announce-ip ";
            words += &ip.to_string();
        }
        options.extend(words.split_whitespace().map(str::to_owned));
        options.extend(["--save".into(), String::new()]);
        options
    }

    /// Waits until the server answers and has loaded its data; false if it ended instead.
    /// A server that lets the test in only as a user that it does not know yet answers as well.
    async fn answers(&self) -> bool {
        let refusals = ["NOAUTH", "WRONGPASS", "authentication failed"];
        match self.call::<String>("PING").await {
            Ok(_) => true,
            Err(error) => {
                let words = format!("{error:#}");
                refusals.iter().any(|one| words.contains(one))
            }
        }
    }

    async fn ready(&mut self) -> Result<bool> {
        let started = within(PATIENCE, "redis-server answers", async || {
            if let Some(process) = &mut self.process
                && process.try_wait()?.is_some()
            {
                return Ok(Some(false));
            }
            let listening = tokio::net::TcpStream::connect(self.client_address())
                .await
                .is_ok();
            let answers = listening && self.answers().await;
            Ok(answers.then_some(true))
        });
        let started = started.await;
        started.with_context(|| format!("{} does not start", self.address))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.kill();
        if !self.quiet {
            println!(
                "--- end of the log of redis-server {} ---\n{}",
                self.address,
                tail(&self.log())
            );
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A free loopback address whose cluster bus port, 10000 above, is free as well.
///
/// Ports stay below the range the system gives to outgoing connections.
pub(crate) fn free_address() -> Result<SocketAddr> {
    free_port(|number| {
        let ip = Ipv4Addr::new(127, 0, 0, u8::try_from(1 + number % 200)?);
        Ok((ip.into(), number / 7))
    })
}

/// The same of version 6: loopback has one address.
pub fn free_ipv6_address() -> Result<SocketAddr> {
    free_port(|number| Ok((Ipv6Addr::LOCALHOST.into(), number)))
}

/// The first that is free, of addresses and ports by number.
fn free_port(candidate: impl Fn(u32) -> Result<(IpAddr, u32)>) -> Result<SocketAddr> {
    let seed = std::process::id().wrapping_mul(7919);
    for _ in 0..1000 {
        let number = seed.wrapping_add(STARTED.fetch_add(1, Ordering::Relaxed).wrapping_mul(13));
        let (ip, port) = candidate(number)?;
        let port = u16::try_from(10_500 + port % 10_000)?;
        let free = |port| TcpListener::bind((ip, port)).is_ok();
        if free(port) && free(port + 10_000) {
            return Ok(SocketAddr::new(ip, port));
        }
    }
    bail!("no free port on loopback")
}

/// Settings that came with 7.0. Before it DEBUG is allowed and connections come from the address of `bind`; what
/// `cluster-allow-replica-migration` forbids later happens always.
const SINCE_7_0: [&str; 3] = [
    "bind-source-addr",
    "enable-debug-command",
    "cluster-allow-replica-migration",
];

fn knows(program: &ServerProgram, setting: &str) -> bool {
    program.at_least(7, 0) || !SINCE_7_0.contains(&setting)
}

/// Ids of the processes that a process has started.
fn children(id: u32) -> Vec<String> {
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let listed = listed.unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines
        .get(lines.len().saturating_sub(40)..)
        .unwrap_or_default()
        .join("\n")
}
