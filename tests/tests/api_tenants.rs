//! What the objects of a tenant cannot reach through the controllers, which run here under the rights of deploy/kustomize: the
//! Secret of another namespace, the controllers' own cloud identity, and addresses of the pod or of a metadata service.

use anyhow::{Context, Result, bail};
use backup_controller::arguments::ControllerArguments as BackupArguments;
use common::{
    access::{AccessError, Buckets},
    runtime::Runtime,
    storage::{S3Cause, StorageArguments, StorageError},
};
use crds::{LocalRef, RedisBackup, RedisCluster, RedisRestore, S3Location, SecretKeyRef};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use restore_controller::arguments::ControllerArguments as RestoreArguments;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::time::Duration;
use tests::{
    kubernetes::{ApiServer, api_server},
    s3::{TestBucket, loopback_allowed},
    wait::eventually,
};

const SYSTEM: &str = "redis-operator-system";
const LEASE: Duration = Duration::from_secs(5);

/// A location in storage that must not be reached, and words that the status of the object shows.
struct Reach {
    name: &'static str,
    s3: Value,
    words: &'static str,
}

fn reaches() -> Vec<Reach> {
    let secret = json!({"name": "own"});
    let at = |name, endpoint: &str| Reach {
        name,
        s3: json!({"bucket": "latest", "endpoint": endpoint, "credentialsSecretRef": secret}),
        words: "EndpointNotAllowed",
    };
    vec![
        Reach {
            name: "identity-at-aws",
            s3: json!({"bucket": "other-team"}),
            words: "AmbientIdentityNotAllowed",
        },
        Reach {
            name: "identity-at-own-endpoint",
            s3: json!({"bucket": "mine", "endpoint": "https://s3.example.com"}),
            words: "AmbientIdentityNotAllowed",
        },
        Reach {
            name: "secret-of-another",
            s3: json!({"bucket": "mine", "endpoint": "https://s3.example.com", "credentialsSecretRef": {"name": "theirs"}}),
            words: "Secret theirs for bucket mine does not exist in this namespace",
        },
        at("metadata", "http://169.254.169.254"),
        at("metadata-mapped", "http://[::ffff:169.254.169.254]"),
        at("loopback", "http://127.0.0.1:8080"),
        at("loopback-by-name", "http://localhost:8080"),
    ]
}

async fn runtime(server: &ApiServer, program: &'static str, namespace: &str) -> Result<Runtime> {
    let account = server.as_account(SYSTEM, program).await?;
    let mut runtime = account.runtime(program, program, namespace, LEASE)?;
    runtime.lease_namespace = SYSTEM.into();
    Ok(runtime)
}

async fn install(server: &ApiServer) -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");
    let apply = ["apply", "--server-side", "--kustomize", folder];
    server.kubectl(&apply, "").await?;
    Ok(())
}

async fn create<K>(server: &ApiServer, namespace: &str, object: Value) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let object: K = serde_json::from_value(object)?;
    let api = Api::<K>::namespaced(server.client.clone(), namespace);
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION), "kind": kind,
        "metadata": {"name": name}, "spec": spec})
}

/// Waits until the status of the object has these words.
async fn shows<K>(server: &ApiServer, namespace: &str, name: &str, words: &str) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api = Api::<K>::namespaced(server.client.clone(), namespace);
    let mut seen = Value::Null;
    let shown = eventually(&format!("{name} shows {words}"), async || {
        let found = serde_json::to_value(api.get(name).await?)?;
        seen = found.get("status").cloned().unwrap_or_default();
        Ok(seen.to_string().contains(words))
    })
    .await;
    shown.with_context(|| format!("{name}: {seen:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_reach_no_secret_identity_or_address_of_others() -> Result<()> {
    let server = api_server().await?;
    install(&server).await?;
    let namespace = server.namespace("tenant").await?;
    let other = server.namespace("other").await?;
    for (namespace, name) in [(&namespace, "own"), (&other, "theirs")] {
        let secret = json!({"metadata": {"name": name},
            "stringData": {"accessKeyId": "KEY", "secretAccessKey": "secret"}});
        create::<Secret>(&server, namespace, secret).await?;
    }
    let cluster = object(
        "RedisCluster",
        "cart",
        &json!({"image": "redis", "shards": 3}),
    );
    create::<RedisCluster>(&server, &namespace, cluster).await?;
    for Reach { name, s3, .. } in reaches() {
        let spec = json!({"clusterRef": {"name": "cart"}, "s3": s3});
        create::<RedisBackup>(&server, &namespace, object("RedisBackup", name, &spec)).await?;
        let spec = json!({"source": {"location": {"s3": s3, "path": "shop/cart/x"}},
            "target": {"clusterRef": {"name": "cart"}}});
        create::<RedisRestore>(&server, &namespace, object("RedisRestore", name, &spec)).await?;
    }

    let backups = runtime(&server, "backup-controller", &namespace).await?;
    let restores = runtime(&server, "restore-controller", &namespace).await?;
    let backing_up = tokio::spawn(backup_controller::run::control(
        backups.clone(),
        BackupArguments {
            streams: 1,
            image: Some("controller:1".to_owned()),
            storage: StorageArguments::default(),
        },
    ));
    let restoring = tokio::spawn(restore_controller::run::control(
        restores.clone(),
        RestoreArguments {
            streams: 1,
            memory_limit: None,
            storage: StorageArguments::default(),
        },
    ));
    let looking = async {
        for Reach { name, words, .. } in reaches() {
            shows::<RedisBackup>(&server, &namespace, name, words).await?;
            shows::<RedisRestore>(&server, &namespace, name, words).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        looked = looking => looked?,
        ended = backing_up => bail!("the backup-controller ended: {ended:?}"),
        ended = restoring => bail!("the restore-controller ended: {ended:?}"),
    }
    for runtime in [backups, restores] {
        runtime.shutdown.cancel();
        runtime.finish(Duration::from_secs(5)).await;
    }
    Ok(())
}

/// A bucket behind a private authority, opened as the controllers open the bucket that an object names.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_read_from_its_secret() -> Result<()> {
    let server = api_server().await?;
    install(&server).await?;
    let namespace = server.namespace("authority").await?;
    let (bucket, authority) = TestBucket::start_tls().await?;
    let pem = String::from_utf8(authority.pem().to_vec())?;
    let key = json!({"accessKeyId": bucket.key().id, "secretAccessKey": bucket.key().secret});
    for (name, data) in [
        ("key", key),
        (
            "authority",
            json!({"ca.crt": pem, "tls.crt": "no certificate"}),
        ),
    ] {
        let secret = json!({"metadata": {"name": name}, "stringData": data});
        create::<Secret>(&server, &namespace, secret).await?;
    }
    let client = server.as_account(SYSTEM, "backup-controller").await?.client;
    let buckets = Buckets::new(client, loopback_allowed().into());
    let location = |authority: Option<(&str, &str)>| S3Location {
        bucket: TestBucket::NAME.to_owned(),
        endpoint: Some(bucket.server().endpoint()),
        credentials_secret_ref: Some(LocalRef {
            name: "key".to_owned(),
        }),
        ca_secret_ref: authority.map(|(name, key)| SecretKeyRef {
            name: name.to_owned(),
            key: key.to_owned(),
        }),
        ..S3Location::default()
    };

    // The account's rights reach it a moment later.
    let store = eventually("the Secret can be read", async || {
        let private = location(Some(("authority", "ca.crt")));
        match buckets.open(&namespace, &private).await {
            Err(AccessError::Api(_)) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    })
    .await?;
    store.probe("shop/").await?;
    let unsigned = buckets.open(&namespace, &location(None)).await?;
    let error = unsigned.probe("shop/").await.err();
    let cause = error.as_ref().and_then(StorageError::cause);
    assert_eq!(cause, Some(S3Cause::UntrustedCertificate), "{error:?}");

    for (name, key, reason, words) in [
        (
            "authority",
            "other.crt",
            "CertificateAuthorityMalformed",
            "has no key other.crt",
        ),
        (
            "authority",
            "tls.crt",
            "CertificateAuthorityMalformed",
            "it holds no certificate",
        ),
        ("missing", "ca.crt", "CredentialsNotFound", "does not exist"),
    ] {
        let opened = buckets.open(&namespace, &location(Some((name, key)))).await;
        let error = opened
            .err()
            .with_context(|| format!("{name}/{key} is taken"))?;
        let text = error.to_string();
        assert_eq!(error.reason(), reason, "{text}");
        assert!(text.contains(words) && text.contains(name), "{text}");
    }
    Ok(())
}
