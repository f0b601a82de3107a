//! A pod's files without Kubernetes: redis.conf and the start script exactly as the cluster-controller renders them, with
//! `/config` and `/data` moved into the server's own directory.

use super::{RedisServer, own_users};
use anyhow::{Context, Result};
use cluster_controller::{build, validate::validate};
use k8s_openapi::{apimachinery::pkg::api::resource::Quantity, jiff::Timestamp};
use std::{collections::BTreeMap, fmt::Write, fs, net::SocketAddr, path::Path, time::Duration};

/// Whether data outlives a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodStorage {
    /// A volume with the append-only file.
    Volume,
    /// An emptyDir: a restarted container starts without data.
    Memory,
}

/// With which users a pod's server starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MountedUsers {
    /// Those of [`own_users`].
    #[default]
    Own,
    /// None.
    None,
    /// Files by name: the data of a Secret.
    Files(BTreeMap<String, Vec<u8>>),
}

/// What the product gives a pod.
#[derive(Clone, Debug)]
pub struct PodFiles {
    pub(super) users: MountedUsers,
    configuration: String,
    start_script: String,
    stop_script: String,
}

impl PodFiles {
    /// The files of a cluster of three shards.
    pub fn render(storage: PodStorage, replicas: usize, node_timeout: Duration) -> Result<Self> {
        let timeout = node_timeout.as_millis().to_string();
        let mut cluster = crds::RedisCluster::new(
            "test",
            crds::RedisClusterSpec {
                image: Some("redis".into()),
                shards: 3,
                replicas_per_shard: i32::try_from(replicas)?,
                storage: (storage == PodStorage::Volume).then(|| crds::Storage {
                    size: Quantity("1Gi".into()),
                    storage_class_name: None,
                    when_deleted: crds::DeletionPolicy::Delete,
                }),
                config: [("cluster-node-timeout".into(), timeout)].into(),
                ..crds::RedisClusterSpec::default()
            },
        );
        cluster.metadata.namespace = Some("test".into());
        cluster.metadata.uid = Some("uid".into());
        let cluster = validate(&cluster, None, Timestamp::now())?;
        let files = build::build(&cluster, &[], "system").config_map.data;
        let stop_script = files.and_then(|mut files| files.remove("stop.sh"));
        Ok(Self {
            users: MountedUsers::default(),
            configuration: build::redis_conf(&cluster),
            start_script: build::start_script(storage == PodStorage::Volume),
            stop_script: stop_script.context("no stop script")?,
        })
    }

    fn write_users(&self, server: &RedisServer, directory: &Path) -> Result<()> {
        let files = match &self.users {
            MountedUsers::Own => own_users::files(server.program()),
            MountedUsers::None => BTreeMap::new(),
            MountedUsers::Files(files) => files.clone(),
        };
        fs::remove_dir_all(directory)?;
        fs::create_dir_all(directory)?;
        for (name, content) in files {
            fs::write(directory.join(name), content)?;
        }
        Ok(())
    }

    /// What Kubernetes would tell the container of its pod: here a pod of the cluster `test` is named after its address, and the name is one
    /// that DNS allows.
    pub(super) fn identity(address: SocketAddr) -> [(&'static str, String); 3] {
        let pod = address.to_string().replace([':', '.', '[', ']'], "x");
        [
            ("POD_NAMESPACE", "test".to_owned()),
            ("POD_NAME", format!("test-{pod}-0")),
            ("POD_UID", "uid".to_owned()),
        ]
    }

    /// What a server started so says of its pod.
    pub(super) fn proof(address: SocketAddr) -> String {
        Self::identity(address).map(|(_, value)| value).join("/")
    }

    /// Writes the configuration into the server's directory; returns the script to run.
    pub(super) fn write(&self, server: &RedisServer, settings: &[(&str, &str)]) -> Result<String> {
        let directory = server.root.join("config");
        let users = server.root.join("users");
        for directory in [&directory, &users] {
            fs::create_dir_all(directory)?;
        }
        self.write_users(server, &users)?;
        let (directory, data) = (path(&directory)?, path(&server.data)?);
        let mut text = self.configuration.clone();
        // A later line replaces an earlier one. Servers share the machine, so each listens at its own address only.
        for (name, value) in server.settings() {
            writeln!(text, "{name} {value}")?;
        }
        for (name, value) in settings {
            writeln!(text, "{name} {value}")?;
        }
        fs::write(Path::new(directory).join("redis.conf"), text)?;
        let script = self.start_script.replace("/config", directory);
        Ok(mounted(&script, server)?.replace("/data", data))
    }

    /// The script that Kubernetes runs in the container before it ends the server.
    pub(super) fn stop_script(&self, server: &RedisServer) -> Result<String> {
        let script = mounted(&self.stop_script, server)?;
        // The servers of all pods share the loopback interface: each is at an address of its own.
        Ok(script.replace("127.0.0.1", &server.address.ip().to_string()))
    }
}

/// A script with the folders of the server in the place of those that its pod mounts.
fn mounted(script: &str, server: &RedisServer) -> Result<String> {
    let mut script = script.to_owned();
    for folder in ["users", "tls"] {
        // With what follows: a file in another folder begins alike.
        let here = format!("{}/", path(&server.root.join(folder))?);
        script = script.replace(&format!("/{folder}/"), &here);
    }
    Ok(script)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a directory that is not UTF-8")
}
