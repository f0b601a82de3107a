//! `redis_exporter` as the pods of a cluster run it: a program of a Debian package with the arguments and files that the product renders, moved
//! from the pod's paths and ports to those of the test.

use crate::{
    packages::{DebianRelease, debian_program},
    wait::eventually,
};
use anyhow::{Context, Result, bail, ensure};
use cluster_controller::{
    build::{build, password_file},
    sets::SetSize,
    validate::validate,
};
use crds::{
    CONTAINER_EXPORTER, ClientAuth, Exporter, FOLDER_CERTIFICATES, FOLDER_EXPORTER,
    KEY_EXPORTER_FILE, METRICS_PORT, MonitoringPolicy, RedisCluster, RedisClusterSpec, TlsPolicy,
};
use k8s_openapi::jiff::Timestamp;
use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Counts the exporters of this process: folders derive from it.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// The folders of the container of an exporter.
pub struct ExporterFiles {
    root: PathBuf,
    server: SocketAddr,
    encrypted: bool,
}

impl ExporterFiles {
    /// Those beside the server of this address.
    pub fn new(server: SocketAddr, encrypted: bool) -> Result<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("exporter-{}-{number}", std::process::id()));
        for folder in [FOLDER_EXPORTER, FOLDER_CERTIFICATES] {
            fs::create_dir_all(in_folder(&root, folder))?;
        }
        Ok(Self {
            root,
            server,
            encrypted,
        })
    }

    /// Where the pod has its certificates.
    pub fn certificates(&self) -> PathBuf {
        in_folder(&self.root, FOLDER_CERTIFICATES)
    }

    /// What a kubelet writes once the password in the Secret is this one.
    pub fn write_password(&self, password: &str) -> Result<()> {
        let text = self.moved(&password_file(password));
        let file = in_folder(&self.root, FOLDER_EXPORTER).join(KEY_EXPORTER_FILE);
        Ok(fs::write(file, text)?)
    }

    /// Paths and addresses of the test in the place of those of a pod.
    fn moved(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for folder in [FOLDER_EXPORTER, FOLDER_CERTIFICATES] {
            let here = in_folder(&self.root, folder);
            text = text.replace(&format!("={folder}/"), &format!("={}/", here.display()));
        }
        let port = if self.encrypted {
            crds::TLS_PORT
        } else {
            crds::CLIENT_PORT
        };
        text.replace(&format!("localhost:{port}"), &self.server.to_string())
    }

    /// The arguments of the container, as the StatefulSet has them.
    fn arguments(&self) -> Result<Vec<String>> {
        let spec = RedisClusterSpec {
            image: Some("redis".into()),
            shards: 3,
            tls: self.encrypted.then(|| TlsPolicy {
                secret_name: "certificates".into(),
                client_auth: ClientAuth::Required,
                allow_plaintext: false,
            }),
            monitoring: Some(MonitoringPolicy {
                exporter: Some(Exporter {
                    image: "exporter".into(),
                    // The example in the definition of the field.
                    extra_args: vec!["--export-client-list".into()],
                    ..Exporter::default()
                }),
            }),
            ..RedisClusterSpec::default()
        };
        let mut cluster = RedisCluster::new("test", spec);
        cluster.metadata.namespace = Some("test".into());
        cluster.metadata.uid = Some("uid".into());
        let cluster = validate(&cluster, None, Timestamp::now())?;
        let encryption = cluster.shape.encryption;
        let cluster = cluster.mounting(true, encryption)?;
        let size = SetSize {
            shard: 0,
            pods: 1,
            keeps_volumes: true,
        };
        let sets = build(&cluster, &[size], "system").stateful_sets;
        let pods = sets.into_iter().filter_map(|set| set.spec.template.spec);
        let mut containers = pods.flat_map(|pod| pod.containers);
        let container = containers.find(|one| one.name == CONTAINER_EXPORTER);
        let arguments = container.context("no exporter")?.args.unwrap_or_default();
        Ok(arguments.iter().map(|one| self.moved(one)).collect())
    }
}

impl Drop for ExporterFiles {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn in_folder(root: &Path, folder: &str) -> PathBuf {
    root.join(folder.trim_start_matches('/'))
}

/// A process of `redis_exporter`. It ends with this value.
pub struct TestExporter {
    process: Child,
    address: SocketAddr,
    /// What its container would have mounted.
    pub files: ExporterFiles,
}

impl TestExporter {
    /// Starts the program of this release, and waits until it answers.
    pub async fn start(release: DebianRelease, files: ExporterFiles) -> Result<Self> {
        let package = "prometheus-redis-exporter";
        let program = debian_program(release, package, package)?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let usual = format!("--web.listen-address=:{METRICS_PORT}");
        let arguments = files.arguments()?;
        ensure!(arguments.contains(&usual), "{arguments:?}");
        let here = format!("--web.listen-address={address}");
        let arguments = arguments.iter().map(|one| one.replace(&usual, &here));
        let log = File::create(files.root.join("log"))?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut exporter = Self {
            process,
            address,
            files,
        };
        let started = eventually("the exporter answers", async || {
            if let Some(status) = exporter.process.try_wait()? {
                bail!("it ended: {status}\n{}", exporter.log());
            }
            Ok(TcpStream::connect(address).await.is_ok())
        });
        started.await?;
        Ok(exporter)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.files.root.join("log")).unwrap_or_default()
    }

    /// Answer to a GET of this path: head and body.
    pub async fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: exporter\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The value of the first series of this name.
    pub async fn value(&self, metric: &str) -> Result<Option<f64>> {
        let page = self.get("/metrics").await?;
        let mut lines = page.lines().filter(|line| !line.starts_with('#'));
        let found = lines.find_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let name = series.split('{').next()?;
            (name == metric).then_some(value)
        });
        Ok(found.map(str::parse).transpose()?)
    }

    /// Whether a scrape reaches the server.
    pub async fn is_up(&self) -> Result<bool> {
        Ok(self.value("redis_up").await? == Some(1.0))
    }
}

impl Drop for TestExporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        println!("--- log of the exporter ---\n{}", self.log());
    }
}
