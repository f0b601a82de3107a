//! A `spec.podTemplate` with everything that there is.

use serde_json::{Value, json};

/// One of each field. The objects that it names do not exist.
pub fn complete() -> Value {
    let fast = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]});
    let others = json!({"topologyKey": "rack", "labelSelector": {"matchLabels": {"app": "noisy"}}});
    json!({
        "labels": {"team": "web"},
        "annotations": {"example.com/note": "two words"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [fast]}},
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": others}]},
        },
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "high",
        "serviceAccountName": "redis",
        "imagePullSecrets": [{"name": "registry"}],
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1001, "runAsGroup": 1002, "fsGroup": 1003, "supplementalGroups": [1004]},
        "extraVolumes": [
            {"name": "notes", "mountPath": "/notes", "configMap": {"name": "notes", "optional": true}},
            {"name": "keys", "mountPath": "/keys", "secret": {"secretName": "keys"}, "readOnly": true},
            {"name": "both", "mountPath": "/both", "projected": {"sources": [{"secret": {"name": "keys"}}]}},
            {"name": "scratch", "mountPath": "/scratch", "emptyDir": {"sizeLimit": "1Gi"}, "subPath": "a/b"},
            {"name": "shared", "mountPath": "/shared", "persistentVolumeClaim": {"claimName": "shared"}},
            {"name": "driver", "mountPath": "/driver", "csi": {"driver": "secrets.example.com", "readOnly": true}},
        ],
    })
}
