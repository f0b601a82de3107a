//! What Kubernetes knows of the process of a node that does not answer: whether it has ended, or may still acknowledge writes. Pure.
//!
//! What counts as proof that a server has ended. The server was last seen in a pod (name and uid) on a Kubernetes node:
//!
//! * the Kubernetes node was deleted, or has the taint `node.kubernetes.io/out-of-service`: by both an administrator or a cloud
//!   controller says that the machine is off;
//! * another node id answers from the very pod (its uid is in the answer): a kubelet starts a container only after the one before ended;
//! * the pod exists, its container is not running, and its Kubernetes node is Ready;
//! * the pod object is gone or replaced, its Kubernetes node has stayed Ready for [`SETTLED`] since, and the new pod cannot run it: it is
//!   answered by another id, not scheduled, or its container is not running on a Kubernetes node that is Ready. A pod that was deleted by force is
//!   gone from the API before its container has ended, and that looks the same as a deletion which the kubelet has confirmed; a kubelet
//!   in contact has ended it by then;
//! * the same, without the two minutes: that Kubernetes node has started a container of a pod which was created after the earlier one was
//!   gone. A kubelet learns of both from one watch, in their order, so it was ending the server by then, and the time that it
//!   gives a server to end in ([`LastSeen::grace`]) has passed since. (A deletion by force does not shorten that time:
//!   `calculateEffectiveGracePeriod` in `pkg/kubelet/pod_workers.go` of Kubernetes 1.35.)
//!
//! Ready is what the API server says: a kubelet is called not Ready when it has not been heard of for the grace period of the node
//! controller (40 to 50 s). A container that ended just before its machine was cut off, and was started there again since, is taken
//! for ended during that time.

use crate::{
    pods::{self, Pods},
    redis::{
        member::{Member, ProcessEvidence, WriteRefusal},
        survey::Survey,
    },
};
use common::cluster::topology::NodeId;
use crds::TAINT_OUT_OF_SERVICE;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A kubelet counts as Ready for 50 s at most after it was last heard of, and a pod has 60 s to end (`build::stateful_set`).
pub const SETTLED: Duration = Duration::from_mins(2);

/// What a pod is given to end in where the status does not say it: no version of this controller has given more.
const USUAL_GRACE: Duration = Duration::from_mins(1);
/// Clocks of two machines differ by less, and a kubelet needs less beyond the time that it gives a container.
const MARGIN: Duration = Duration::from_secs(10);

/// Where a node was last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastSeen {
    /// Uid of the pod.
    pub pod_uid: Option<String>,
    /// Name of the Kubernetes node.
    pub kubernetes_node: Option<String>,
    /// Seconds that its pod had to end in.
    pub grace: Option<u64>,
    /// By which settings it refused writes when it was last asked. None: by none, or that is not known.
    pub refusal: Option<WriteRefusal>,
    /// When it last had all that was written, as far as was seen. None while it has.
    pub current_until: Option<Timestamp>,
    /// Since when none has had a sign of life of it. None while one has.
    pub unresponsive_since: Option<Timestamp>,
}

/// Where the recorded nodes were last seen, by id.
pub type LastSeenNodes = BTreeMap<NodeId, LastSeen>;

/// What is known of a Kubernetes node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineState {
    /// It does not exist.
    Deleted,
    /// It has the taint of a machine that is off.
    OutOfService,
    /// Its kubelet reports, since this time.
    Ready(Option<Timestamp>),
    /// Its kubelet has not been heard of for some time.
    NotReady,
    /// It could not be read; in words.
    Unknown(String),
}

impl MachineState {
    /// What an answer of the API server means.
    pub fn of(node: Option<&Node>) -> Self {
        let Some(node) = node else {
            return Self::Deleted;
        };
        let taints = node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten());
        if taints
            .into_iter()
            .any(|taint| taint.key == TAINT_OUT_OF_SERVICE)
        {
            return Self::OutOfService;
        }
        let conditions = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let mut ready = conditions.filter(|one| one.type_ == "Ready" && one.status == "True");
        ready.next().map_or(Self::NotReady, |ready| {
            Self::Ready(ready.last_transition_time.as_ref().map(|time| time.0))
        })
    }
}

/// Whether it matters whether the processes of lost primaries have ended: without a majority they may acknowledge writes, and what was in
/// memory only is gone with them.
pub fn is_asked_for(survey: &Survey<'_>) -> bool {
    let mut members = survey.members.iter();
    !survey.has_quorum() || members.any(|one| !one.expected.has_volume)
}

/// The Kubernetes nodes on which these nodes were last seen, and those of their present pods.
pub fn machines(
    away: &[(NodeId, &str)],
    last_seen: &LastSeenNodes,
    pods: &Pods,
) -> BTreeSet<String> {
    let recorded = away
        .iter()
        .filter_map(|(id, _)| last_seen.get(id)?.kubernetes_node.clone());
    let present = away
        .iter()
        .filter_map(|(_, pod)| pods::kubernetes_node(pods.get(*pod)?))
        .map(ToOwned::to_owned);
    recorded.chain(present).collect()
}

/// What is needed to judge.
pub struct FencingInputs<'a> {
    /// Where the recorded nodes were last seen.
    pub last_seen: &'a LastSeenNodes,
    /// What the API server shows of the pods, by name.
    pub pods: &'a Pods,
    /// The Kubernetes nodes by name.
    pub machines: &'a BTreeMap<String, MachineState>,
    /// Since when this process has seen pods gone, by name.
    pub gone_since: &'a BTreeMap<String, Timestamp>,
    /// Time of the observation.
    pub now: Timestamp,
}

/// What is known of the process of a node that was last seen in the expected pod of `member`.
pub fn evidence(id: NodeId, member: &Member, inputs: &FencingInputs<'_>) -> ProcessEvidence {
    let name = member.expected.pod.as_str();
    let pod = inputs.pods.get(name).map(AsRef::as_ref);
    let seen = inputs.last_seen.get(&id).cloned().unwrap_or_default();
    let present = pod.and_then(|pod| pod.metadata.uid.as_deref());
    let replaced = match (&seen.pod_uid, present) {
        (Some(old), Some(new)) => old != new,
        (_, None) => true,
        // Recorded before uids were: the present pod has to do.
        (None, Some(_)) => false,
    };
    let result = match pod {
        Some(pod) if !replaced => in_present_pod(pod, member, inputs),
        _ => in_earlier_pod(name, &seen, pod, inputs).and_then(|how| {
            pod.map_or(Ok(String::new()), |pod| in_present_pod(pod, member, inputs))
                .map(|_| how)
        }),
    };
    match result {
        Ok(how) => ProcessEvidence::Ended(how),
        Err((why, cure)) => ProcessEvidence::MayRun { why, cure },
    }
}

/// How it is known that a process has ended; or what is in doubt, and the cure.
type Judgement = Result<String, (String, String)>;

/// Of a process that may run in the pod that exists now.
fn in_present_pod(pod: &Pod, member: &Member, inputs: &FencingInputs<'_>) -> Judgement {
    let name = member.expected.pod.as_str();
    let another = member
        .report()
        .is_some_and(|report| member.expected.proof.as_ref() == Some(&report.proof));
    if another {
        return Ok(format!("another server runs in pod {name}"));
    }
    let Some(place) = pods::kubernetes_node(pod) else {
        return Ok(format!("pod {name} is not scheduled"));
    };
    let state = inputs.machines.get(place);
    match state {
        Some(MachineState::Deleted | MachineState::OutOfService) => Ok(off(place, state)),
        Some(MachineState::Ready(_)) if pods::has_ended(pod) => {
            Ok(format!("the container of pod {name} has ended"))
        }
        Some(MachineState::Ready(_)) => Err((
            format!("its container runs on Kubernetes node {place} and does not answer"),
            "see kubectl logs".to_owned(),
        )),
        Some(MachineState::NotReady | MachineState::Unknown(_)) | None => {
            Err(unclear(place, state))
        }
    }
}

/// Of a process in a pod that is gone.
fn in_earlier_pod(
    name: &str,
    seen: &LastSeen,
    pod: Option<&Pod>,
    inputs: &FencingInputs<'_>,
) -> Judgement {
    let place = seen.kubernetes_node.as_deref().unwrap_or("?");
    let state = inputs.machines.get(place);
    match state {
        Some(MachineState::Deleted | MachineState::OutOfService) => Ok(off(place, state)),
        Some(MachineState::Ready(ready_since)) => {
            // A pod of the same name is created only when the earlier one is gone.
            let created = pod.and_then(|pod| pod.metadata.creation_timestamp.as_ref());
            let gone = created
                .map(|created| created.0)
                .or_else(|| inputs.gone_since.get(name).copied());
            let settled = |from: Timestamp| {
                inputs.now >= from && inputs.now.duration_since(from).unsigned_abs() >= SETTLED
            };
            if gone.is_some_and(settled) && ready_since.is_none_or(settled) {
                return Ok(format!("its pod is gone from Kubernetes node {place}"));
            }
            if is_ended_by_successor(place, seen, pod, inputs) {
                return Ok(format!(
                    "Kubernetes node {place} has ended its pod, and started a later one since"
                ));
            }
            Err((
                format!("its pod was deleted, and Kubernetes node {place} may still be ending it"),
                "wait 2 minutes".to_owned(),
            ))
        }
        Some(MachineState::NotReady | MachineState::Unknown(_)) | None => {
            Err(unclear(place, state))
        }
    }
}

/// Whether the kubelet of an earlier pod's Kubernetes node is known to have ended it: it has started a pod that was created after the
/// earlier one was gone. `pod` is the new one of the same name. Of pods of other names only those count that were created in a later second.
fn is_ended_by_successor(
    place: &str,
    seen: &LastSeen,
    pod: Option<&Pod>,
    inputs: &FencingInputs<'_>,
) -> bool {
    let created = |pod: &Pod| {
        let created = pod.metadata.creation_timestamp.as_ref()?;
        Some(created.0)
    };
    let Some((successor, gone)) = pod.and_then(|pod| Some((pod, created(pod)?))) else {
        return false;
    };
    let later = inputs.pods.values().map(AsRef::as_ref).filter(|other| {
        other.metadata.uid == successor.metadata.uid
            || created(other).is_some_and(|created| created > gone)
    });
    let here = later.filter(|other| pods::kubernetes_node(other) == Some(place));
    let known_since = here.filter_map(pods::first_started).min();
    let grace = seen.grace.map_or(USUAL_GRACE, Duration::from_secs) + MARGIN;
    known_since.is_some_and(|since| {
        inputs.now >= since && inputs.now.duration_since(since).unsigned_abs() >= grace
    })
}

fn off(place: &str, state: Option<&MachineState>) -> String {
    match state {
        Some(MachineState::OutOfService) => format!("Kubernetes node {place} is out of service"),
        _ => format!("Kubernetes node {place} was deleted"),
    }
}

fn unclear(place: &str, state: Option<&MachineState>) -> (String, String) {
    match state {
        Some(MachineState::NotReady) => (
            format!("its Kubernetes node {place} is not Ready"),
            "if its machine is off: kubectl delete node".to_owned(),
        ),
        Some(MachineState::Unknown(why)) => (
            format!("its Kubernetes node {place} cannot be read ({why})"),
            "see that its server has ended".to_owned(),
        ),
        _ => (
            "the Kubernetes node that it ran on is not known".to_owned(),
            "see that its server has ended".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::member::{Answer, ExpectedNode, ZoneLabel};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};
    use std::sync::Arc;

    const ID: NodeId = NodeId::from_bytes([7; 20]);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(uid: &str, node: &str, state: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "shop-0-0", "namespace": "team", "uid": uid},
            "spec": {"nodeName": node, "containers": []},
            "status": {"containerStatuses": [{"name": crds::CONTAINER, "image": "", "imageID": "", "ready": false,
                                              "restartCount": 0, "state": state}]},
        }))
        .unwrap()
    }

    fn member() -> Member {
        Member {
            expected: ExpectedNode {
                zone: ZoneLabel::Absent,
                ..ExpectedNode::new("shop-0-0".into(), 0, 0)
            },
            answer: Answer::Unresponsive("no answer".into()),
        }
    }

    /// Whether a node last seen in the pod `old` on `n1` has ended.
    fn has_ended(pod: Option<Pod>, state: MachineState, gone_since: Option<i64>) -> bool {
        let seen = LastSeen {
            pod_uid: Some("old".into()),
            kubernetes_node: Some("n1".into()),
            grace: None,
            ..LastSeen::default()
        };
        let pods: Pods = pod
            .into_iter()
            .map(|pod| ("shop-0-0".to_owned(), Arc::new(pod)))
            .collect();
        let inputs = FencingInputs {
            last_seen: &[(ID, seen)].into(),
            pods: &pods,
            machines: &[("n1".to_owned(), state)].into(),
            gone_since: &gone_since
                .map(|second| ("shop-0-0".to_owned(), at(second)))
                .into_iter()
                .collect(),
            now: at(1000),
        };
        matches!(evidence(ID, &member(), &inputs), ProcessEvidence::Ended(_))
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-01-01T10:00:00Z"}})
    }

    /// The new pod finds no place.
    fn pending() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "shop-0-0", "namespace": "team", "uid": "new", "creationTimestamp": "1970-01-01T00:14:40Z"},
            "spec": {"containers": []},
        }))
        .unwrap()
    }

    fn crashing() -> Value {
        json!({"waiting": {"reason": "CrashLoopBackOff"}})
    }

    #[test]
    fn a_machine_that_is_off_has_ended_everything() {
        for state in [MachineState::Deleted, MachineState::OutOfService] {
            assert!(has_ended(None, state.clone(), None));
            assert!(has_ended(
                Some(pod("old", "n1", &running())),
                state.clone(),
                None
            ));
            // The new pod may run the node from its volume.
            let elsewhere = Some(pod("new", "n2", &running()));
            assert!(!has_ended(elsewhere, state.clone(), None));
            assert!(has_ended(Some(pending()), state, None));
        }
    }

    #[test]
    fn a_container_that_ended_counts_while_its_kubelet_reports() {
        let ready = || MachineState::Ready(None);
        assert!(has_ended(
            Some(pod("old", "n1", &crashing())),
            ready(),
            None
        ));
        assert!(!has_ended(
            Some(pod("old", "n1", &running())),
            ready(),
            None
        ));
        let doubtful = [
            MachineState::NotReady,
            MachineState::Unknown("Forbidden".into()),
        ];
        for state in doubtful {
            assert!(!has_ended(Some(pod("old", "n1", &crashing())), state, None));
        }
    }

    /// Deleted by force and deleted with the kubelet's confirmation look the same.
    #[test]
    fn a_pod_that_is_gone_counts_after_a_while() {
        let ready = |since: i64| MachineState::Ready(Some(at(since)));
        assert!(!has_ended(None, ready(0), None));
        assert!(!has_ended(None, ready(0), Some(900)));
        assert!(has_ended(None, ready(0), Some(880)));
        // It was not Ready meanwhile: its kubelet may not have been in contact.
        assert!(!has_ended(None, ready(950), Some(800)));
        assert!(!has_ended(None, MachineState::NotReady, Some(0)));
        // A new pod of the name says when the earlier one was gone: at 880.
        assert!(has_ended(Some(pending()), ready(0), None));
        assert!(!has_ended(Some(pending()), MachineState::NotReady, None));
        let mut serves = pending();
        serves.spec = pod("new", "n1", &running()).spec;
        serves.status = pod("new", "n1", &running()).status;
        assert!(!has_ended(Some(serves), ready(0), None));
    }

    /// A pod that was created at a second, and whose container was started at another one.
    fn later_pod(uid: &str, node: &str, created: i64, state: &Value) -> Pod {
        let mut later = pod(uid, node, state);
        later.metadata.creation_timestamp = Some(Time(at(created)));
        later
    }

    fn started(second: i64) -> Value {
        json!({"running": {"startedAt": at(second)}})
    }

    /// Whether a node last seen in the pod `old` on `n1`, which had this time to end in, has ended: there is a new pod of its name, and these
    /// other ones of the cluster.
    fn has_ended_early(grace: Option<u64>, successor: Pod, others: &[Pod], now: i64) -> bool {
        let seen = LastSeen {
            pod_uid: Some("old".into()),
            kubernetes_node: Some("n1".into()),
            grace,
            ..LastSeen::default()
        };
        let named =
            |(number, pod): (usize, &Pod)| (format!("shop-1-{number}"), Arc::new(pod.clone()));
        let mut pods: Pods = others.iter().enumerate().map(named).collect();
        pods.insert("shop-0-0".to_owned(), Arc::new(successor));
        let inputs = FencingInputs {
            last_seen: &[(ID, seen)].into(),
            pods: &pods,
            machines: &[("n1".to_owned(), MachineState::Ready(None))].into(),
            gone_since: &BTreeMap::new(),
            now: at(now),
        };
        matches!(evidence(ID, &member(), &inputs), ProcessEvidence::Ended(_))
    }

    /// The kubelet learns of a deletion before it learns of a pod that was created afterwards.
    #[test]
    fn a_later_pod_on_the_machine_proves_the_end() {
        let unscheduled = || {
            let mut successor = pending();
            successor.metadata.creation_timestamp = Some(Time(at(900)));
            successor
        };
        let ended = |grace, others: &[Pod], now| has_ended_early(grace, unscheduled(), others, now);
        let later = [later_pod("later", "n1", 901, &started(905))];
        assert!(!ended(Some(20), &later, 934));
        assert!(ended(Some(20), &later, 935));
        // The time that the pod had, and where that is not known the longest.
        assert!(!ended(None, &later, 974));
        assert!(ended(None, &later, 975));
        assert!(!ended(Some(90), &later, 1004));
        let proves = |pod: Pod| ended(Some(20), &[pod], 1000);
        assert!(
            !proves(later_pod("earlier", "n1", 900, &started(905))),
            "it may have been created before the other one was gone"
        );
        assert!(!proves(later_pod("elsewhere", "n3", 901, &started(905))));
        let creating = json!({"waiting": {"reason": "ContainerCreating"}});
        assert!(
            !proves(later_pod("waiting", "n1", 901, &creating)),
            "its kubelet has not said that it knows it"
        );
        // Without any other pod it takes two minutes.
        assert!(!ended(Some(20), &[], 1019));
        assert!(ended(Some(20), &[], 1020));
    }

    /// The new pod of the same name is created when the earlier one is gone, and may be on the same machine.
    #[test]
    fn the_new_pod_of_the_name_proves_the_end() {
        let mut successor = later_pod("new", "n1", 900, &crashing());
        let ended = |successor: &Pod, now| has_ended_early(Some(20), successor.clone(), &[], now);
        assert!(!ended(&successor, 1000), "its container was never started");
        let status = successor.status.as_mut().unwrap();
        let container = &mut status.container_statuses.as_mut().unwrap()[0];
        container.last_state = Some(
            serde_json::from_value(json!({"terminated": {"exitCode": 1, "startedAt": at(905)}}))
                .unwrap(),
        );
        assert!(!ended(&successor, 934));
        assert!(ended(&successor, 935));
        // A server that runs in it may be the one that is looked for: it has its volume.
        let serves = later_pod("new", "n1", 900, &started(905));
        assert!(!ended(&serves, 1000));
    }

    #[test]
    fn a_node_object_says_what_the_machine_is() {
        let node = |value: Value| MachineState::of(Some(&serde_json::from_value(value).unwrap()));
        assert_eq!(MachineState::of(None), MachineState::Deleted);
        let condition = |status: &str| json!({"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:00:09Z"}]});
        assert_eq!(
            node(json!({"metadata": {}, "status": condition("True")})),
            MachineState::Ready(Some(at(9)))
        );
        for status in ["False", "Unknown"] {
            let silent = json!({"metadata": {}, "status": condition(status)});
            assert_eq!(node(silent), MachineState::NotReady);
        }
        let taints = json!([{"key": TAINT_OUT_OF_SERVICE, "effect": "NoExecute"}]);
        let off = json!({"metadata": {}, "spec": {"taints": taints}, "status": condition("True")});
        assert_eq!(node(off), MachineState::OutOfService);
    }
}
