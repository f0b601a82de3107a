//! The pod that starts a server with a new configuration before any pod of the cluster gets it.

use super::{
    client_options::CLIENT_OPTIONS, metadata, pod_template::with_ours, start_script::start_script,
    stateful_set::pod,
};
use crate::{
    settings::trial::{ANSWERS_WITHIN, POD_DEADLINE, REFUSED},
    validate::ValidatedCluster,
};
use crds::{CLAIM, CONTAINER, LABEL_CLUSTER, LABEL_TRIAL};
use k8s_openapi::{
    api::core::v1::{Container, EmptyDirVolumeSource, Pod, PodSpec, ResourceRequirements, Volume},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

/// Processor time and memory that it asks for: a server without keys. More would find no room on Kubernetes nodes that are full.
const REQUESTS: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "16Mi")];

/// The pod. It is like the cluster's pods: image, user, limits, what Kubernetes nodes it may run on, start script; but it has no volume,
/// no probes, listens on its loopback interface alone, and ends once its server has answered.
pub fn trial_pod(cluster: &ValidatedCluster, name: &str, configuration: &str) -> Pod {
    let mut metadata = metadata(cluster, name.to_owned());
    let of_user = &cluster.pod_template;
    metadata.labels = Some(with_ours(
        &of_user.labels,
        metadata.labels.unwrap_or_default(),
    ));
    metadata.annotations = Some(of_user.annotations.clone()).filter(|more| !more.is_empty());
    if let Some(labels) = &mut metadata.labels {
        // By this label Services and budgets select.
        labels.remove(LABEL_CLUSTER);
        labels.insert(LABEL_TRIAL.to_owned(), cluster.shape.name.clone());
    }
    let mut spec = pod(cluster, 0, configuration);
    if let Some(affinity) = &mut spec.affinity {
        // Where the other pods run is no matter.
        affinity.pod_affinity = None;
        affinity.pod_anti_affinity = None;
    }
    spec.topology_spread_constraints = None;
    spec.readiness_gates = None;
    spec.restart_policy = Some("Never".to_owned());
    spec.active_deadline_seconds = Some(POD_DEADLINE);
    spec.termination_grace_period_seconds = Some(1);
    add_memory(&mut spec);
    for container in &mut spec.containers {
        if container.name == CONTAINER {
            only_starts(cluster, container);
        }
    }
    Pod {
        metadata,
        spec: Some(spec),
        ..Pod::default()
    }
}

/// A directory that goes with the pod, in the place of the volume claim.
fn add_memory(spec: &mut PodSpec) {
    let volumes = spec.volumes.get_or_insert_default();
    let container = spec.containers.iter().find(|one| one.name == CONTAINER);
    let mounts = container.and_then(|one| one.volume_mounts.as_ref());
    let claimed = mounts.is_some_and(|mounts| mounts.iter().any(|mount| mount.name == CLAIM));
    if claimed {
        volumes.push(Volume {
            name: CLAIM.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
    }
}

fn only_starts(cluster: &ValidatedCluster, container: &mut Container) {
    let script = trial_script(cluster.storage.is_some());
    container.command = Some(vec!["sh".to_owned(), "-c".to_owned(), script]);
    container.lifecycle = None;
    container.startup_probe = None;
    container.liveness_probe = None;
    container.readiness_probe = None;
    container.ports = None;
    // The last lines of the log are what a server says that does not start.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    let limits = container.resources.take().and_then(|one| one.limits);
    let limits = limits.unwrap_or_default().into_iter();
    let limits: BTreeMap<String, Quantity> = limits
        .filter(|(name, _)| REQUESTS.iter().any(|(known, _)| known == name))
        .collect();
    container.resources = Some(ResourceRequirements {
        requests: Some(
            REQUESTS
                .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
                .into(),
        ),
        limits: (!limits.is_empty()).then_some(limits),
        ..ResourceRequirements::default()
    });
}

/// The start script, whose server is asked until it answers instead of running on.
pub(super) fn trial_script(persistent: bool) -> String {
    let start = start_script(persistent);
    let start = start.trim_end().trim_end_matches(EXEC);
    TRIAL_SCRIPT
        .replace("@START@\n", start)
        .replace("@OPTIONS@\n", CLIENT_OPTIONS)
        .replace("@TRIES@", &(ANSWERS_WITHIN * 5).to_string())
        .replace("@REFUSED@", &REFUSED.to_string())
}

/// How the start script ends.
const EXEC: &str = r#"exec "$server" "$@""#;

/// Any answer will do: the server has read its configuration by then. A connection that is lost is none: a server listens before it loads its
/// modules (`Error: ` is what the client puts before that, and no server). Ended by itself, it has refused it; the log is what it says.
const TRIAL_SCRIPT: &str = r#"@START@
"$server" "$@" --bind 127.0.0.1 &
pid=$!
cli=$(command -v redis-cli || command -v valkey-cli) || { echo "the image has neither redis-cli nor valkey-cli"; exit @REFUSED@; }
ping() {
  set --
@OPTIONS@
  "$cli" -h 127.0.0.1 "$@" ping
}
tries=0
while [ "$tries" -lt @TRIES@ ]; do
  kill -0 "$pid" 2>/dev/null || exit @REFUSED@
  answer=$(ping 2>&1) || true
  case $answer in
    "" | *"ould not connect"* | "Error: "*) ;;
    *) exit 0 ;;
  esac
  tries=$((tries + 1))
  sleep 0.2
done
echo "no answer within @TRIES@ fifths of a second; the last one: $answer"
exit 2
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::start_script::tests::{PROGRAMS, folders, install, shell},
        validate::{tests::example, validate},
    };
    use k8s_openapi::jiff::Timestamp;
    use std::fs;

    fn rendered(persistent: bool) -> Pod {
        let mut cluster = example();
        if !persistent {
            cluster.spec.storage = None;
        }
        let limits = [
            ("memory".to_owned(), Quantity("1Gi".to_owned())),
            ("example.com/device".to_owned(), Quantity("1".to_owned())),
        ];
        cluster.spec.resources = Some(ResourceRequirements {
            limits: Some(limits.into()),
            requests: Some([("memory".to_owned(), Quantity("1Gi".to_owned()))].into()),
            ..ResourceRequirements::default()
        });
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        trial_pod(&cluster, "shop-trial-0", "shop-config-0")
    }

    /// Services and budgets never count it, it takes no room, and nothing of it outlives it.
    #[test]
    fn the_pod_is_no_pod_of_the_cluster() {
        for persistent in [true, false] {
            let pod = rendered(persistent);
            let labels = pod.metadata.labels.unwrap();
            assert!(!labels.contains_key(LABEL_CLUSTER), "{labels:?}");
            assert_eq!(labels[LABEL_TRIAL], "shop");
            assert_eq!(pod.metadata.owner_references.unwrap().len(), 1);
            let spec = pod.spec.unwrap();
            let container = &spec.containers[0];
            let volumes = spec.volumes.unwrap();
            for mount in container.volume_mounts.iter().flatten() {
                let volume = volumes.iter().find(|one| one.name == mount.name).unwrap();
                assert!(volume.empty_dir.is_some() || volume.config_map.is_some());
            }
            assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
            assert_eq!(spec.automount_service_account_token, Some(false));
            assert!(container.readiness_probe.is_none() && container.lifecycle.is_none());
            let resources = container.resources.clone().unwrap();
            assert_eq!(resources.requests.unwrap()["memory"].0, "16Mi");
            let limits = resources.limits.unwrap();
            assert_eq!(limits.keys().collect::<Vec<_>>(), ["memory"]);
        }
    }

    /// Runs the script with a server and a client that are these scripts.
    fn run(server: &str, client: &str) -> (i32, String) {
        let _one = PROGRAMS.lock();
        let (root, [data, config, bin]) = folders(["data", "config", "bin"]);
        fs::write(config.join("redis.conf"), "").unwrap();
        for (name, text) in [("redis-server", server), ("redis-cli", client)] {
            install(&bin, name, &format!("{text}\n"));
        }
        let script = trial_script(true)
            .replace("/data", data.to_str().unwrap())
            .replace("/config", config.to_str().unwrap())
            .replace("-lt 150", "-lt 2");
        let identity = ["POD_IP", "POD_NAMESPACE", "POD_NAME", "POD_UID"].map(|name| (name, "x"));
        let ended = shell(&script, &bin).envs(identity).output().unwrap();
        fs::remove_dir_all(&root).unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (ended.status.code().unwrap(), said)
    }

    const VERSION: &str = "case $1 in --version) echo v=7.0.15; exit 0 ;; esac";

    #[test]
    fn the_script_ends_with_the_servers_answer() {
        let serves = format!("{VERSION}\nexec sleep 1");
        assert_eq!(run(&serves, "echo PONG").0, 0);
        let loading = "echo 'LOADING Redis is loading'; exit 1";
        assert_eq!(run(&serves, loading).0, 0);
        let ends = format!("{VERSION}\necho 'FATAL CONFIG FILE ERROR' >&2; exit 1");
        let unheard = "sleep 0.1; echo 'Could not connect'; exit 1";
        let (status, said) = run(&ends, unheard);
        assert!(
            status == REFUSED && said.contains("FATAL CONFIG"),
            "{status}: {said}"
        );
        // It listens before it loads its modules, and ends with them.
        for lost in ["Connection reset by peer", "Server closed the connection"] {
            let client = format!("sleep 0.1; echo 'Error: {lost}'; exit 1");
            assert_eq!(run(&ends, &client).0, REFUSED, "{lost}");
        }
        let (status, said) = run(&serves, unheard);
        assert!(
            status == 2 && said.contains("no answer"),
            "{status}: {said}"
        );
        let listens = format!("{VERSION}\necho \"$@\"; exit 1");
        let (_, said) = run(&listens, unheard);
        assert!(
            said.contains("--bind 127.0.0.1") && said.contains("appendonly.aof"),
            "{said}"
        );
    }
}
