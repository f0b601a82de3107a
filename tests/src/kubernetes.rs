//! A real API server for suites that need no nodes: CRDs, server-side apply, leases, claims, watches.
//!
//! Each test program has one of its own (etcd and kube-apiserver on free loopback ports, started at the first use), which ends with
//! the program, however that ends. With `TEST_KUBECONFIG` the API server named there is used instead.

use crate::wait::{eventually, within};
use anyhow::{Context, Result, anyhow, bail, ensure};
use common::{
    kubernetes::events::Events,
    runtime::{CommonArguments, Program, Runtime, client},
};
use crds::{RedisCluster, RedisClusterStatus};
use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};
use tokio::io::AsyncWriteExt;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/local/local-kubernetes"
);

/// An API server with the suite's CRDs, and a client with every right.
pub struct ApiServer {
    /// The client; it belongs to the caller's tokio runtime.
    pub client: Client,
    /// Path of the kubeconfig, for programs that are started.
    pub kubeconfig: PathBuf,
    _logs: ServerLogs,
}

/// The logs of etcd and kube-apiserver, which go with them. At the end of a test their last errors are printed, which the test runner
/// shows when the test fails.
struct ServerLogs {
    folder: Option<PathBuf>,
}

impl ServerLogs {
    /// Errors of each log that are printed.
    const SHOWN: usize = 10;

    fn is_error(line: &str) -> bool {
        let mut characters = line.chars();
        let klog = matches!(characters.next(), Some('E' | 'F'))
            && characters.next().is_some_and(|next| next.is_ascii_digit());
        klog || ["error", "fatal"]
            .iter()
            .any(|level| line.contains(&format!("\"level\":\"{level}\"")))
    }
}

impl Drop for ServerLogs {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        for name in ["etcd.log", "kube-apiserver.log"] {
            let log = fs::read_to_string(folder.join(name)).unwrap_or_default();
            let errors: Vec<&str> = log.lines().filter(|line| Self::is_error(line)).collect();
            let last = errors.len().saturating_sub(Self::SHOWN);
            for line in errors.into_iter().skip(last) {
                println!("{name}: {line}");
            }
        }
    }
}

/// The test program's API server, with the CRDs.
pub async fn api_server() -> Result<ApiServer> {
    let server = connect().await?;
    for definition in crds::definitions() {
        server.define(&definition).await?;
    }
    Ok(server)
}

/// Starts the API server, or connects to it.
pub(crate) async fn connect() -> Result<ApiServer> {
    let path = tokio::task::spawn_blocking(kubeconfig).await??;
    // Both are there already where another test of the program came first.
    let _ = client::install_crypto_provider();
    let _ = tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_test_writer()
        .try_init();
    let file =
        Kubeconfig::read_from(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let own = std::env::var_os("TEST_KUBECONFIG").is_none();
    let folder = path.parent().filter(|_| own).map(Path::to_owned);
    Ok(ApiServer {
        client: Client::try_from(config)?,
        kubeconfig: path,
        _logs: ServerLogs { folder },
    })
}

impl ApiServer {
    /// The same server, reached by another client. Its logs are left to this value.
    #[must_use]
    pub fn with_client(&self, client: Client) -> Self {
        Self {
            client,
            kubeconfig: self.kubeconfig.clone(),
            _logs: ServerLogs { folder: None },
        }
    }

    /// The same server under the rights of one account.
    pub async fn as_account(&self, namespace: &str, account: &str) -> Result<Self> {
        let file = Kubeconfig::read_from(&self.kubeconfig)?;
        let mut config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.auth_info.impersonate = Some(format!("system:serviceaccount:{namespace}:{account}"));
        Ok(self.with_client(Client::try_from(config)?))
    }

    /// A new namespace whose name begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        let mut namespace = Namespace::default();
        namespace.metadata.generate_name = Some(format!("{prefix}-"));
        let created = Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(created.name_any())
    }

    /// Applies a CRD and waits until the server serves it.
    pub async fn define(&self, definition: &CustomResourceDefinition) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let name = definition.name_any();
        let parameters = PatchParams::apply("tests").force();
        api.patch(&name, &parameters, &Patch::Apply(definition))
            .await?;
        eventually(&format!("CRD {name} is established"), async || {
            let status = api.get(&name).await?.status;
            let conditions = status.and_then(|s| s.conditions).unwrap_or_default();
            Ok(conditions.iter().any(is_established))
        })
        .await
    }

    /// What kubectl answers to these arguments and this standard input.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        // The components' kubectl; the rest of the environment that the script prints is another instance's.
        let run = r#"environment=$("$0" env apiserver); eval "$environment"; export KUBECONFIG=$1; shift; exec kubectl "$@""#;
        let mut child = tokio::process::Command::new("bash")
            .args(["-euc", run, SCRIPT])
            .arg(&self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run bash")?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl {}: {words}",
            arguments.join(" ")
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What a controller gets, for a replica named `identity` whose leases are in `namespace` and last for `lease`. It watches
    /// that namespace only.
    pub fn runtime(
        &self,
        program: &'static str,
        identity: &str,
        namespace: &str,
        lease: Duration,
    ) -> Result<Runtime> {
        let program = Program {
            name: program,
            version: "0.0.0",
        };
        let arguments = CommonArguments {
            watch_namespace: namespace.to_string(),
            lease_namespace: Some(namespace.to_string()),
            identity: Some(identity.to_string()),
            lease_duration: lease,
            ..arguments()?
        };
        let (events, _publisher) = Events::start(self.client.clone(), program.name, identity);
        let client = self.client.clone();
        Ok(Runtime::new(program, arguments, client, events))
    }
}

fn is_established(
    condition: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition,
) -> bool {
    condition.type_ == "Established" && condition.status == "True"
}

fn arguments() -> Result<CommonArguments> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        common: CommonArguments,
    }
    Ok(<Defaults as clap::Parser>::try_parse_from(["test"])?.common)
}

/// The path of the kubeconfig; starts the API server at the first call.
fn kubeconfig() -> Result<PathBuf> {
    static STARTED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("TEST_KUBECONFIG") {
        return Ok(path.into());
    }
    STARTED
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn start() -> Result<PathBuf> {
    let instance = format!("test-{}", std::process::id());
    // Ends the instance when our end of its standard input closes: at the end of this process, orderly or not.
    let end = r#"trap '' INT TERM HUP; cat > /dev/null; exec "$0" down > /dev/null 2>&1"#;
    let watcher = Command::new("sh")
        .args(["-c", end, SCRIPT])
        .env("INSTANCE", &instance)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start sh")?;
    // The pipe stays open for as long as this process lives.
    std::mem::forget(watcher);
    let output = Command::new(SCRIPT)
        .arg("apiserver")
        .env("INSTANCE", &instance)
        .output()
        .with_context(|| format!("cannot run {SCRIPT}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("no API server (`make components` builds it): {words}");
    }
    let path = String::from_utf8_lossy(&output.stdout).trim().to_string();
    Ok(path.into())
}

/// `spec.auth` of a RedisCluster that gets no users. The test runs its servers, which mount no Secret.
pub fn no_users() -> Value {
    json!({"enabled": false})
}

/// Waits for a status of a RedisCluster that answers its present spec.
pub async fn status_within(
    limit: Duration,
    (api, name): (&Api<RedisCluster>, &str),
    what: &str,
    is_so: impl Fn(&RedisClusterStatus) -> bool,
) -> Result<RedisClusterStatus> {
    let mut last = None;
    let found = within(limit, what, async || {
        let object = api.get(name).await?;
        let generation = object.metadata.generation;
        last.clone_from(&object.status);
        Ok(object
            .status
            .filter(|status| status.observed_generation == generation && is_so(status)))
    });
    let found = found.await;
    found.with_context(|| reported(last.as_ref()))
}

/// A status in few lines, its conditions last: of a long failure only the end may be kept.
fn reported(status: Option<&RedisClusterStatus>) -> String {
    let Some(status) = status else {
        return "there is no status".to_owned();
    };
    let rest = RedisClusterStatus {
        conditions: Vec::new(),
        ..status.clone()
    };
    let rest = serde_json::to_string(&rest).unwrap_or_else(|error| error.to_string());
    let conditions = status.conditions.iter().map(|one| {
        let (kind, status) = (&one.type_, &one.status);
        format!("\n{kind}={status} {}: {}", one.reason, one.message)
    });
    format!("the status is {rest}{}", conditions.collect::<String>())
}
