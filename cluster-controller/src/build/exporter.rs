//! The container that measures the server of its pod, where the spec asks for one: `redis_exporter`, or a program with its arguments.
//!
//! The password is in a file, never in an argument or a variable, and the liveness probe has the program read that file again.

use super::parts::{mount, port, sandbox, secret_volume};
use crate::validate::ValidatedCluster;
use crds::{
    CLIENT_PORT, CONTAINER_EXPORTER, Exporter, FOLDER_CERTIFICATES, FOLDER_EXPORTER,
    KEY_EXPORTER_FILE, KEY_PRESENTED, METRICS_PORT, METRICS_PORT_NAME, OwnUser, TLS_PORT,
    VOLUME_CERTIFICATES, VOLUME_EXPORTER, certificate_file, key_file,
};
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, KeyToPath, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Map, Value};

/// Between two liveness probes: so long after its file has changed the program goes on with the password of before. The file is there
/// `MOUNTED_AFTER` (150 s) after the Secret, and servers take the password of before for `auth.overlap`, which is 3 minutes at least.
pub const RELOAD_SECONDS: i32 = 30;

/// Adds the container, and the volume with its password.
pub(super) fn add(cluster: &ValidatedCluster, pod: &mut PodSpec) {
    let Some(exporter) = &cluster.exporter else {
        return;
    };
    pod.containers.push(container(cluster, exporter));
    if cluster.mounts_users {
        let name = OwnUser::Exporter.secret_name(&cluster.shape.name);
        let file = KeyToPath {
            key: KEY_EXPORTER_FILE.to_owned(),
            path: KEY_EXPORTER_FILE.to_owned(),
            ..KeyToPath::default()
        };
        let volume = secret_volume(VOLUME_EXPORTER, name, Some(vec![file]));
        pod.volumes.get_or_insert_default().push(volume);
    }
}

fn container(cluster: &ValidatedCluster, exporter: &Exporter) -> Container {
    let mut mounts = Vec::new();
    if cluster.mounts_users {
        mounts.push(mount(VOLUME_EXPORTER, FOLDER_EXPORTER));
    }
    if cluster.shape.encryption.has_certificates() {
        mounts.push(mount(VOLUME_CERTIFICATES, FOLDER_CERTIFICATES));
    }
    Container {
        name: CONTAINER_EXPORTER.to_owned(),
        image: Some(exporter.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(arguments(cluster, exporter)),
        ports: Some(vec![port(METRICS_PORT_NAME, METRICS_PORT)]),
        resources: exporter.resources.clone(),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        // No readiness probe: clients reach the server whether it is measured or not.
        liveness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some(probed(cluster).to_owned()),
                port: IntOrString::String(METRICS_PORT_NAME.to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(RELOAD_SECONDS),
            timeout_seconds: Some(5),
            failure_threshold: Some(3),
            ..Probe::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(sandbox()),
        ..Container::default()
    }
}

/// Asked for the first, the program reads its file again. One that has no such path answers with its start page.
fn probed(cluster: &ValidatedCluster) -> &'static str {
    if cluster.mounts_users {
        "/-/reload"
    } else {
        "/health"
    }
}

/// Arguments that every version of `redis_exporter` from 1.45 on knows. Those of the user come last.
fn arguments(cluster: &ValidatedCluster, exporter: &Exporter) -> Vec<String> {
    // Where there are certificates, the encrypted port is open whatever the servers send each other.
    let encrypted = cluster.shape.encryption.has_certificates();
    let port = if encrypted { TLS_PORT } else { CLIENT_PORT };
    let mut arguments = vec![
        format!("--redis.addr={}", address(port, "")),
        format!("--web.listen-address=:{METRICS_PORT}"),
        // Its user may not run CONFIG GET, which reports a password. A version that does not know the dash sends it as a command.
        "--config-command=-".to_owned(),
    ];
    if cluster.mounts_users {
        let file = format!("{FOLDER_EXPORTER}/{KEY_EXPORTER_FILE}");
        arguments.push(format!("--redis.user={}", OwnUser::Exporter.name()));
        arguments.push(format!("--redis.password-file={file}"));
    }
    if encrypted {
        // On the loopback interface of its own pod, whose name is in no certificate. The files are read at each scrape. They are presented
        // whatever clientAuth says, because that can change while the pod runs.
        let [certificate, key] = [certificate_file(KEY_PRESENTED), key_file(KEY_PRESENTED)];
        arguments.extend([
            "--skip-tls-verification".to_owned(),
            format!("--tls-client-cert-file={FOLDER_CERTIFICATES}/{certificate}"),
            format!("--tls-client-key-file={FOLDER_CERTIFICATES}/{key}"),
        ]);
    }
    arguments.extend(exporter.extra_args.iter().cloned());
    arguments
}

/// The server of the same pod. `user` is empty or ends with an @.
fn address(port: u16, user: &str) -> String {
    let scheme = if port == TLS_PORT { "rediss" } else { "redis" };
    format!("{scheme}://{user}localhost:{port}")
}

/// The file with the password, by address: a new version looks it up with the name of its user (`lookupPasswordInPasswordMap` in its
/// `exporter/redis.go`), 1.45 without.
pub fn password_file(password: &str) -> String {
    let user = format!("{}@", OwnUser::Exporter.name());
    let ports = [CLIENT_PORT, TLS_PORT];
    let addresses = ports.map(|port| [address(port, &user), address(port, "")]);
    let entries = addresses.into_iter().flatten();
    let entries = entries.map(|address| (address, Value::from(password)));
    Value::Object(entries.collect::<Map<_, _>>()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::{build, trial_pod},
        sets::SetSize,
        validate::{tests::example, validate},
    };
    use crds::{CONTAINER, ClientAuth, MonitoringPolicy, TlsPolicy};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{json, to_value};

    fn cluster(exporter: &Value, users: bool, encrypted: bool) -> ValidatedCluster {
        let mut cluster = example();
        let monitoring: MonitoringPolicy =
            serde_json::from_value(json!({"exporter": exporter})).unwrap();
        cluster.spec.monitoring = Some(monitoring);
        if encrypted {
            cluster.spec.tls = Some(TlsPolicy {
                secret_name: "of-a-user".into(),
                client_auth: ClientAuth::Off,
                allow_plaintext: false,
            });
        }
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        let encryption = cluster.shape.encryption;
        cluster.mounting(users, encryption).unwrap()
    }

    fn pod(cluster: &ValidatedCluster) -> Value {
        let size = SetSize {
            shard: 0,
            pods: 2,
            keeps_volumes: true,
        };
        let set = build(cluster, &[size], "system").stateful_sets.remove(0);
        to_value(set.spec.template.spec).unwrap()
    }

    /// Its container and, where there is one, its volume.
    fn parts(pod: &Value) -> (Option<Value>, Option<Value>) {
        let named = |list: &str, name: &str| {
            let mut all = pod[list].as_array().unwrap().iter();
            all.find(|one| one["name"] == name).cloned()
        };
        (
            named("containers", CONTAINER_EXPORTER),
            named("volumes", VOLUME_EXPORTER),
        )
    }

    #[test]
    fn only_pods_that_ask_for_it_have_one() {
        let with = cluster(&json!({"image": "exporter:1"}), true, true);
        let trial = to_value(trial_pod(&with, "trial", "configuration").spec).unwrap();
        assert_eq!(parts(&trial), (None, None));
        let without = cluster(&Value::Null, true, true);
        assert_eq!(parts(&pod(&without)), (None, None));
        assert_ne!(with.restart_hash, without.restart_hash);
        let plain = example();
        let plain = validate(&plain, None, Timestamp::UNIX_EPOCH).unwrap();
        let same = cluster(&Value::Null, false, false);
        assert_eq!(same.restart_hash, plain.restart_hash);
    }

    #[test]
    fn its_password_is_in_a_file_of_its_own() {
        let exporter = json!({"image": "exporter:1", "resources": {"limits": {"memory": "64Mi"}}, "extraArgs": ["--export-client-list"]});
        let pod = pod(&cluster(&exporter, true, false));
        let (container, volume) = parts(&pod);
        let (container, volume) = (container.unwrap(), volume.unwrap());
        assert_eq!(container["image"], "exporter:1");
        assert_eq!(container["resources"], exporter["resources"]);
        assert_eq!(
            container["ports"],
            json!([{"name": "metrics", "containerPort": 9121, "protocol": "TCP"}])
        );
        let arguments = [
            "--redis.addr=redis://localhost:6379",
            "--web.listen-address=:9121",
            "--config-command=-",
            "--redis.user=redis-operator-exporter",
            "--redis.password-file=/exporter/exporter.json",
            "--export-client-list",
        ];
        assert_eq!(container["args"], json!(arguments));
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/-/reload");
        let mounts = json!([{"name": "exporter", "mountPath": "/exporter"}]);
        assert_eq!(container["volumeMounts"], mounts);
        let file = json!([{"key": "exporter.json", "path": "exporter.json"}]);
        assert_eq!(
            volume["secret"],
            json!({"secretName": "shop-user-exporter", "items": file})
        );
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        let server = &pod["containers"][0];
        assert_eq!(server["name"], CONTAINER);
        let mounts = server["volumeMounts"].as_array().unwrap();
        assert!(!mounts.iter().any(|mount| mount["name"] == VOLUME_EXPORTER));
    }

    #[test]
    fn without_users_it_logs_in_as_none() {
        let (container, volume) = parts(&pod(&cluster(&json!({"image": "a"}), false, false)));
        let container = container.unwrap();
        assert_eq!(volume, None);
        assert_eq!(container.get("volumeMounts"), None);
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health");
        assert_eq!(container["args"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn it_shows_the_certificate_of_the_pod() {
        let (container, _) = parts(&pod(&cluster(&json!({"image": "a"}), true, true)));
        let container = container.unwrap();
        let arguments = container["args"].to_string();
        for part in [
            "--redis.addr=rediss://localhost:6380",
            "--skip-tls-verification",
            "--tls-client-cert-file=/tls/presented.crt",
            "--tls-client-key-file=/tls/presented.key",
        ] {
            assert!(arguments.contains(part), "{arguments}");
        }
        let mounts = container["volumeMounts"].to_string();
        assert!(mounts.contains(r#""/tls""#), "{mounts}");
    }

    #[test]
    fn the_file_has_the_password_for_every_address() {
        let file: Value = serde_json::from_str(&password_file("a\"b")).unwrap();
        let wanted = json!({
            "redis://redis-operator-exporter@localhost:6379": "a\"b",
            "redis://localhost:6379": "a\"b",
            "rediss://redis-operator-exporter@localhost:6380": "a\"b",
            "rediss://localhost:6380": "a\"b",
        });
        assert_eq!(file, wanted);
    }
}
