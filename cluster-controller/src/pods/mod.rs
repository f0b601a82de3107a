//! What Kubernetes says of a pod. Pure.

pub mod loading;
mod mounts;
pub mod replace;
pub mod start;
mod unscheduled;

pub use common::kubernetes::pods::{ip, is_terminating, started};
pub use mounts::{Mounted, has_secret, mounts};

use common::kubernetes::pods::server;
use crds::{
    ANNOTATION_RESTART_HASH, CONDITION_SERVING, CONTAINER, ENV_ADOPT_VOLUMES, FOLDER_DATA,
    LABEL_ROLE,
};
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodSpec,
    },
    jiff::Timestamp,
};
use kube::ResourceExt;
use std::{collections::HashMap, sync::Arc};

/// A kubelet's reason for `Ready=False` while the containers are ready and a readiness gate is not (`GeneratePodReadyCondition` in
/// Kubernetes' `pkg/kubelet/status/generate.go`, 1.11 to 1.35).
const GATES_NOT_READY: &str = "ReadinessGatesNotReady";
/// Bytes of a line of a log that is shown. A longer one says little in a status.
const LONGEST_WORDS: usize = 120;
/// Exit code of a start script that starts no server and says why (`build::start_script`).
const REFUSED: i32 = 78;
/// Reason of the serving condition of a node that gave no answer: all others follow from an answer.
pub const NOT_ANSWERING: &str = "NotAnswering";
/// Reason of the serving condition while a server answers `BUSY`.
pub const SCRIPT_RUNNING: &str = "ScriptRunning";

/// The pods of a cluster by name.
pub type Pods = HashMap<String, Arc<Pod>>;

/// What its start script lets the server say of itself, if it does: namespace, name and uid of the pod.
pub fn proof(pod: &Pod) -> Option<String> {
    let variables = server_container(pod)?.env.as_ref()?;
    let knows = variables.iter().any(|variable| variable.name == "POD_UID");
    let uid = pod.metadata.uid.as_ref().filter(|_| knows)?;
    let namespace = pod.metadata.namespace.as_deref()?;
    Some(format!("{namespace}/{}/{uid}", pod.name_any()))
}

/// The container of its server, as it is to run.
fn server_container(pod: &Pod) -> Option<&Container> {
    let mut containers = pod.spec.as_ref()?.containers.iter();
    containers.find(|container| container.name == CONTAINER)
}

/// Whether its server's data outlive it: what is mounted at `/data` is a volume. It may have other volumes besides.
pub fn has_claim(pod: &Pod) -> bool {
    let mounts = server_container(pod).and_then(|server| server.volume_mounts.as_ref());
    let mut mounts = mounts.into_iter().flatten();
    let data = mounts.find(|mount| mount.mount_path == FOLDER_DATA);
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let mut volumes = volumes.into_iter().flatten();
    data.is_some_and(|data| {
        volumes.any(|volume| volume.name == data.name && volume.persistent_volume_claim.is_some())
    })
}

/// `namespace/name` of the RedisCluster whose volumes it may take over.
pub fn adopts(pod: &PodSpec) -> Option<&str> {
    let containers = pod.containers.iter();
    let mut variables = containers.flat_map(|container| container.env.iter().flatten());
    let adopts = variables.find(|variable| variable.name == ENV_ADOPT_VOLUMES)?;
    adopts.value.as_deref()
}

/// Name of the Kubernetes node that it runs on.
pub fn kubernetes_node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Seconds that its containers have to end in once its kubelet ends them.
pub fn grace_seconds(pod: &Pod) -> Option<u64> {
    let grace = pod.spec.as_ref()?.termination_grace_period_seconds?;
    u64::try_from(grace).ok()
}

/// When a kubelet first started its server, as far as the present run and the one before it say: it knows the pod by then.
pub fn first_started(pod: &Pod) -> Option<Timestamp> {
    starts(pod).min()
}

/// When a kubelet last started its server, whether that still runs or not.
pub fn last_started(pod: &Pod) -> Option<Timestamp> {
    starts(pod).max()
}

fn starts(pod: &Pod) -> impl Iterator<Item = Timestamp> + '_ {
    let states = server(pod).into_iter();
    let states = states.flat_map(|container| [&container.state, &container.last_state]);
    states.filter_map(|state| {
        let state = state.as_ref()?;
        let running = state.running.as_ref().map(|run| &run.started_at);
        let ended = state.terminated.as_ref().map(|run| &run.started_at);
        running.or(ended)?.as_ref().map(|time| time.0)
    })
}

/// Whether the address in its status is sure to be its own. When a Kubernetes node stops reporting, the node controller sets `Ready` to
/// False on its pods and leaves everything else as it was, the empty reason of `Ready=True` too (`MarkPodsNotReady` in
/// `pkg/controller/util/node`). A kubelet sets `ContainersReady` to False as well, or gives the readiness gate as the reason. The status
/// is frozen from then on, and the address may be given to another pod. A pod that was not ready before its Kubernetes node stopped
/// shows nothing of it.
pub fn address_is_current(pod: &Pod) -> bool {
    !is_unready(pod) || !containers_ready(pod) || is_unready_by_gate(pod)
}

/// Whether its containers are ready, as far as its kubelet has reported.
pub fn containers_ready(pod: &Pod) -> bool {
    condition(pod, "ContainersReady").is_some_and(|one| one.status == "True")
}

fn is_unready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|one| one.status == "False")
}

/// Whether its kubelet says that nothing but the readiness gate keeps it from being ready.
fn is_unready_by_gate(pod: &Pod) -> bool {
    is_unready(pod)
        && condition(pod, "Ready").is_some_and(|one| one.reason.as_deref() == Some(GATES_NOT_READY))
}

/// Whether its readiness depends on the serving condition. Pods of earlier versions have a probe that asks the server instead.
pub fn has_serving_gate(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|spec| &spec.readiness_gates);
    gates
        .flatten()
        .any(|gate| gate.condition_type == CONDITION_SERVING)
}

/// The serving condition, once it was written.
pub fn serving(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, CONDITION_SERVING)
}

/// Start of the outage; none while Kubernetes counts the pod as ready. A pod may have been unready for hours for all kinds of reasons:
/// the outage begins when its container last started or ended.
pub fn down_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready");
    if ready.is_some_and(|condition| condition.status == "True") || only_we_get_no_answer(pod) {
        return None;
    }
    let ended = server(pod).and_then(ended);
    let created = pod.metadata.creation_timestamp.clone();
    [
        changed(pod),
        created.map(|time| time.0),
        started(pod),
        ended,
    ]
    .into_iter()
    .flatten()
    .max()
}

/// Whether nothing but our own missing answer makes the pod unready: that is no second witness of an outage. What the node itself
/// reported before (loading, not linked) is one, as it was while the kubelet asked the server.
fn only_we_get_no_answer(pod: &Pod) -> bool {
    let no_answer = serving(pod).is_some_and(|one| {
        // One that answered BUSY was alive, and answers nothing for a while when the next script begins.
        let reason = one.reason.as_deref();
        [Some(NOT_ANSWERING), Some(SCRIPT_RUNNING)].contains(&reason)
    });
    no_answer && is_unready_by_gate(pod) && containers_ready(pod) && !is_terminating(pod)
}

/// When it last became ready or unready.
pub fn changed(pod: &Pod) -> Option<Timestamp> {
    let changed = condition(pod, "Ready")?.last_transition_time.as_ref()?;
    Some(changed.0)
}

fn ended(container: &ContainerStatus) -> Option<Timestamp> {
    [&container.state, &container.last_state]
        .into_iter()
        .filter_map(|state| {
            let terminated = state.as_ref()?.terminated.as_ref()?;
            terminated.finished_at.as_ref().map(|time| time.0)
        })
        .max()
}

/// Whether the scheduler finds no place for it.
pub fn is_unscheduled(pod: &Pod) -> bool {
    condition(pod, "PodScheduled").is_some_and(|one| one.status == "False")
}

/// Why its server does not answer, as far as Kubernetes knows, and what can be done.
pub fn why_down(pod: Option<&Pod>) -> Option<String> {
    let Some(pod) = pod else {
        return Some("the pod does not exist; see kubectl describe statefulset".to_owned());
    };
    if is_terminating(pod) {
        let kubernetes_node = kubernetes_node(pod).unwrap_or("nowhere");
        return Some(format!(
            "the pod is being deleted from {kubernetes_node}; if that node is gone for good: kubectl delete node {kubernetes_node}"
        ));
    }
    if let Some(unscheduled) = condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        let words = unscheduled.message.as_deref().unwrap_or_default();
        return Some(unscheduled::explained(words));
    }
    let container = server(pod)?;
    let state = container.state.as_ref()?;
    if let Some(words) = state.terminated.as_ref().and_then(refusal) {
        return Some(words);
    }
    let waiting = state.waiting.as_ref()?;
    let (reason, words) = (waiting.reason.as_deref()?, waiting.message.as_deref());
    match reason {
        // How every container begins.
        "ContainerCreating" | "PodInitializing" => None,
        // Its message counts the seconds.
        "CrashLoopBackOff" if out_of_memory(pod) => {
            Some("crash-looping (OOMKilled); raise spec.resources.limits.memory".to_owned())
        }
        "CrashLoopBackOff" if last_end(pod).is_some_and(|run| refusal(run).is_some()) => {
            last_end(pod).and_then(refusal)
        }
        "CrashLoopBackOff" => Some(match last_words(pod) {
            Some(words) => format!("crash-looping ({words}); see kubectl logs --previous"),
            None => "crash-looping; see kubectl logs --previous".to_owned(),
        }),
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => {
            let image = &container.image;
            // The last part of the runtime's message is the cause; before it, the image is named several times.
            let cause = words.and_then(|words| words.rsplit(": ").next());
            let cause = cause.filter(|cause| cause.len() < 80).unwrap_or(reason);
            Some(format!(
                "cannot pull image {image} ({cause}); correct spec.image or spec.version"
            ))
        }
        _ => Some(match words {
            Some(words) => format!("{reason}: {words}"),
            None => reason.to_owned(),
        }),
    }
}

/// What the start script has left in the termination log: why it starts no server, and what can be done.
fn refusal(run: &ContainerStateTerminated) -> Option<String> {
    let words = run.message.as_deref()?.trim();
    (run.exit_code == REFUSED && !words.is_empty()).then(|| words.to_owned())
}

/// Whether its server runs no more, or not yet, as far as its kubelet has reported.
pub fn has_ended(pod: &Pod) -> bool {
    let state = server(pod).and_then(|container| container.state.as_ref());
    state.is_some_and(|state| state.running.is_none())
}

fn out_of_memory(pod: &Pod) -> bool {
    last_end(pod).is_some_and(|ended| ended.reason.as_deref() == Some("OOMKilled"))
}

/// How often its server has ended, where it does so again and again and was ended for its memory last.
pub fn ends_for_memory(pod: &Pod) -> Option<i32> {
    let times = server(pod)?.restart_count;
    (times > 1 && out_of_memory(pod)).then_some(times)
}

/// The run before the present one, or before the back-off.
fn last_end(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let last = server(pod)?.last_state.as_ref()?;
    last.terminated.as_ref()
}

/// The last line that the server has logged before it failed, without the process id and the time (`1:M 26 Nov 2026 10:00:00.000 # `).
/// Pods of earlier versions do not report it.
fn last_words(pod: &Pod) -> Option<&str> {
    let log = last_end(pod)?.message.as_deref()?;
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let words = [" # ", " * "]
        .into_iter()
        .find_map(|level| Some(line.split_once(level)?.1))
        .unwrap_or(line);
    (words.len() < LONGEST_WORDS).then_some(words)
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    all.iter().find(|condition| condition.type_ == kind)
}

/// When the readiness gate was closed; none while it is open, or was never opened.
pub fn gate_closed(pod: &Pod) -> Option<Timestamp> {
    let gate = condition(pod, CONDITION_SERVING).filter(|gate| gate.status == "False")?;
    Some(gate.last_transition_time.as_ref()?.0)
}

/// Whether its readiness gate has been closed since the pod was created.
pub fn has_never_served(pod: &Pod) -> bool {
    let created = pod.metadata.creation_timestamp.as_ref();
    let closed_at_birth = |gate: &PodCondition| {
        let since = gate.last_transition_time.as_ref();
        gate.status == "False"
            && since
                .zip(created)
                .is_some_and(|(since, created)| since.0 <= created.0)
    };
    has_serving_gate(pod) && serving(pod).is_none_or(closed_at_birth)
}

/// Whether Kubernetes counts the pod as ready.
pub fn is_ready(pod: &Pod) -> bool {
    !is_terminating(pod)
        && condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// What the pod's role label says.
pub fn role_label(pod: &Pod) -> Option<&str> {
    pod.labels().get(LABEL_ROLE).map(String::as_str)
}

/// The restart hash the pod was made with.
pub fn restart_hash(pod: &Pod) -> Option<&str> {
    pod.annotations()
        .get(ANNOTATION_RESTART_HASH)
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(metadata: &Value, status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn running(at: &str) -> Value {
        json!([{"name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"running": {"startedAt": at}},
                "lastState": {"terminated": {"exitCode": 137, "finishedAt": "2026-01-01T09:59:58Z"}}}])
    }

    fn unready(since: &str) -> Value {
        json!([{"type": "Ready", "status": "False", "lastTransitionTime": since}])
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A volume of the user's, and one that its StatefulSet has kept, hold no data of the server.
    #[test]
    fn what_is_mounted_at_its_data_counts() {
        let has = |data: &str, volumes: Value| {
            let mounts = json!([{"name": "shared", "mountPath": "/shared"}, {"name": data, "mountPath": FOLDER_DATA}]);
            let pod = json!({"spec": {"volumes": volumes, "containers": [
                {"name": "exporter", "volumeMounts": [{"name": "shared", "mountPath": FOLDER_DATA}]},
                {"name": CONTAINER, "volumeMounts": mounts}]}});
            has_claim(&serde_json::from_value(pod).unwrap())
        };
        let claim =
            |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        let memory = json!({"name": "memory", "emptyDir": {}});
        assert!(has("data", json!([claim("data"), claim("shared")])));
        assert!(!has(
            "memory",
            json!([memory, claim("data"), claim("shared")])
        ));
        assert!(!has("memory", json!([])));
    }

    /// The Kubernetes node was away for minutes; its container has just started again, and has yet to read its data.
    #[test]
    fn the_waiting_begins_with_the_last_start() {
        let metadata = json!({"creationTimestamp": "2026-01-01T08:00:00Z"});
        let since = "2026-01-01T09:50:00Z";
        let started = json!({"conditions": unready(since), "containerStatuses": running("2026-01-01T10:00:00Z")});
        assert_eq!(
            down_since(&pod(&metadata, &started)),
            Some(time("2026-01-01T10:00:00Z"))
        );
        let mut ended = started.clone();
        ended["containerStatuses"][0]["state"] =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        assert_eq!(
            down_since(&pod(&metadata, &ended)),
            Some(time("2026-01-01T09:59:58Z"))
        );
        let silent = json!({"conditions": unready(since)});
        assert_eq!(down_since(&pod(&metadata, &silent)), Some(time(since)));
        let unknown = pod(&metadata, &json!({}));
        assert_eq!(down_since(&unknown), Some(time("2026-01-01T08:00:00Z")));
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": running("2026-01-01T10:00:00Z")});
        assert_eq!(down_since(&pod(&metadata, &ready)), None);
    }

    /// Conditions as a kubelet (1.35) or the node controller writes them.
    fn conditions(ready: (&str, &str), containers: &str, serving: (&str, &str)) -> Value {
        json!([{"type": "Ready", "status": ready.0, "reason": ready.1, "lastTransitionTime": "2026-01-01T09:50:00Z"},
               {"type": "ContainersReady", "status": containers},
               {"type": CONDITION_SERVING, "status": serving.0, "reason": serving.1}])
    }

    #[test]
    fn the_address_of_a_frozen_status_is_not_current() {
        let is_current = |ready, containers, serving| {
            let conditions = conditions(ready, containers, serving);
            address_is_current(&pod(&json!({}), &json!({ "conditions": conditions })))
        };
        let serves = ("True", "Serving");
        let gate = ("False", GATES_NOT_READY);
        assert!(is_current(("True", ""), "True", serves));
        assert!(is_current(("False", "ContainersNotReady"), "False", serves));
        assert!(is_current(gate, "True", ("False", "NoSlots")));
        // The node controller changes the status alone, whatever the gate says by then.
        for serving in [serves, ("False", NOT_ANSWERING)] {
            assert!(!is_current(("False", ""), "True", serving), "{serving:?}");
        }
        // A pod of an earlier version has no gate.
        let frozen = json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]);
        assert!(!address_is_current(&pod(
            &json!({}),
            &json!({ "conditions": frozen })
        )));
        let unready = json!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
                             {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"}]);
        assert!(address_is_current(&pod(
            &json!({}),
            &json!({ "conditions": unready })
        )));
    }

    /// Otherwise a controller that is cut off from a pod would be both witnesses of its outage.
    #[test]
    fn our_own_missing_answer_is_no_second_witness() {
        let gate = ("False", GATES_NOT_READY);
        let since = Some(time("2026-01-01T09:50:00Z"));
        let stays = json!({});
        let down = |metadata: &Value, ready, containers, serving| {
            let conditions = conditions(ready, containers, serving);
            down_since(&pod(metadata, &json!({ "conditions": conditions })))
        };
        let silent = ("False", NOT_ANSWERING);
        assert_eq!(down(&stays, gate, "True", silent), None);
        // What the node itself said last counts.
        assert_eq!(down(&stays, gate, "True", ("False", "Loading")), since);
        // The kubelet or the node controller is the second witness.
        let unready = ("False", "ContainersNotReady");
        assert_eq!(down(&stays, unready, "False", silent), since);
        assert_eq!(down(&stays, ("False", ""), "True", silent), since);
        let terminating = json!({"deletionTimestamp": "2026-01-01T10:00:00Z"});
        assert_eq!(down(&terminating, gate, "True", silent), since);
    }

    #[test]
    fn what_kubernetes_knows_is_said_with_the_cure() {
        let why = |status: &Value| why_down(Some(&pod(&json!({}), status)));
        let gone = why_down(None).unwrap();
        assert!(gone.contains("describe statefulset"), "{gone}");
        let full = json!({"conditions": [{"type": "PodScheduled", "status": "False",
                          "message": "0/3 nodes are available: 3 Insufficient memory."}]});
        let words = why(&full).unwrap();
        assert!(
            words.contains("3 Insufficient memory; make room"),
            "{words}"
        );
        let waits = |reason: &str, message: &str| {
            let mut status = json!({"containerStatuses": running("2026-01-01T09:00:00Z")});
            status["containerStatuses"][0]["state"] =
                json!({"waiting": {"reason": reason, "message": message}});
            why(&status)
        };
        assert_eq!(waits("ContainerCreating", ""), None);
        let pull = waits("ErrImagePull", "rpc error: redis:9: not found").unwrap();
        assert!(pull.contains("(not found)"), "{pull}");
        let again = "Back-off pulling image \"redis:9\": ErrImagePull: redis:9: not found";
        assert_eq!(waits("ImagePullBackOff", again), Some(pull));
        let words = waits("CrashLoopBackOff", "back-off 40s").unwrap();
        assert!(words.contains("logs --previous"), "{words}");
        let mut refused = json!({"containerStatuses": running("2026-01-01T09:00:00Z")});
        let ended = json!({"terminated": {"exitCode": REFUSED, "message": "the volume belongs to another\n"}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for (state, last) in [(&waiting, &ended), (&ended, &json!({}))] {
            refused["containerStatuses"][0]["state"] = state.clone();
            refused["containerStatuses"][0]["lastState"] = last.clone();
            let words = why(&refused).unwrap();
            assert_eq!(words, "the volume belongs to another");
        }
        assert_eq!(why(&json!({})), None);
    }

    /// What a kubelet shows of a server that ends again and again.
    #[test]
    fn the_cause_of_a_crash_loop_is_named() {
        let ends = |reason: &str, log: &str| {
            let mut status = json!({"containerStatuses": running("2026-01-01T09:00:00Z")});
            let container = &mut status["containerStatuses"][0];
            container["state"] =
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}});
            container["lastState"]["terminated"]["reason"] = reason.into();
            container["lastState"]["terminated"]["message"] = log.into();
            why_down(Some(&pod(&json!({}), &status))).unwrap()
        };
        assert_eq!(
            ends("OOMKilled", ""),
            "crash-looping (OOMKilled); raise spec.resources.limits.memory"
        );
        let log = "1:C 26 Nov 2026 10:00:00.000 * oO0OoO0OoO0Oo Redis is starting\n\
                   1:M 26 Nov 2026 10:00:00.001 # Can't open the append-only file: No space left on device\n";
        assert_eq!(
            ends("Error", log),
            "crash-looping (Can't open the append-only file: No space left on device); see kubectl logs --previous"
        );
        assert_eq!(
            ends("Error", "Bad directive\n\n"),
            "crash-looping (Bad directive); see kubectl logs --previous"
        );
        for log in ["", &"long ".repeat(100)] {
            assert_eq!(
                ends("Error", log),
                "crash-looping; see kubectl logs --previous"
            );
        }
    }
}
