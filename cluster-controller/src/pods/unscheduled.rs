//! Why the scheduler finds no Kubernetes node for a pod, and the cure. Pure.

/// Parts of the scheduler's messages and the cure of each, the most telling first (Kubernetes' `pkg/scheduler/framework/plugins`, 1.33
/// to 1.35). A node that lacks room says so itself.
const CURES: [(&str, &str); 5] = [
    (
        "anti-affinity rules",
        "add Kubernetes nodes, or relax spec.placement.shardAntiAffinity and spec.podTemplate.affinity",
    ),
    (
        "topology spread constraints",
        "add Kubernetes nodes in other zones, or relax spec.placement and spec.podTemplate.topologySpreadConstraints",
    ),
    (
        "node affinity/selector",
        "correct spec.podTemplate.nodeSelector and affinity, or label Kubernetes nodes",
    ),
    ("Insufficient", ROOM),
    (
        "untolerated taint",
        "add the toleration to spec.podTemplate.tolerations, or remove the taint",
    ),
];

const ROOM: &str = "make room for it, or correct the resources and the storage";

/// What the scheduler says, without what it tried besides, and what can be done.
pub(super) fn explained(message: &str) -> String {
    let cause = message.split(". ").next().unwrap_or_default();
    let cause = cause.trim_end_matches('.');
    let mut cures = CURES.iter();
    let cure = cures.find(|(part, _)| cause.contains(part));
    let cure = cure.map_or(ROOM, |(_, cure)| cure);
    format!("not scheduled: {cause}; {cure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_cure() {
        for (nodes, cure) in [
            ("3 Insufficient memory", "make room"),
            (
                "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 node(s) didn't match pod anti-affinity rules",
                "relax spec.placement.shardAntiAffinity",
            ),
            (
                "1 node(s) didn't match pod topology spread constraints, 2 Insufficient cpu",
                "in other zones",
            ),
            (
                "3 node(s) didn't match Pod's node affinity/selector",
                "spec.podTemplate.nodeSelector",
            ),
            (
                "3 node(s) had untolerated taint(s)",
                "spec.podTemplate.tolerations",
            ),
            (
                "2 Insufficient memory, 1 node(s) had untolerated taint(s)",
                "make room",
            ),
            ("3 node(s) had volume node affinity conflict", "the storage"),
        ] {
            let message = format!(
                "0/3 nodes are available: {nodes}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
            );
            let words = explained(&message);
            let wanted = format!("not scheduled: 0/3 nodes are available: {nodes}; ");
            let rest = words.strip_prefix(&wanted).unwrap_or_default();
            assert!(rest.contains(cure), "{words}");
        }
    }
}
