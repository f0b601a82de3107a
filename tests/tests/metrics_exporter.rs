//! The exporter of a pod against a real server: `redis_exporter` of Debian 12 and 13, with the arguments and the file that the product renders,
//! and the rights of its user and no other.

use anyhow::{Context, Result, ensure};
use crds::{Encryption, KEY_PRESENTED, OwnUser, authorities_file, certificate_file, key_file};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};
use tests::{
    certificates::{Flaw, TestAuthority},
    exporter::{ExporterFiles, TestExporter},
    packages::DebianRelease,
    redis::{RedisServer, TestCluster, own_users::password},
    rules::metrics,
};

const USER: OwnUser = OwnUser::Exporter;

/// Starts one beside a server that is not encrypted.
async fn beside(
    server: &RedisServer,
    release: DebianRelease,
    password: &str,
) -> Result<TestExporter> {
    let files = ExporterFiles::new(server.address(), false)?;
    files.write_password(password)?;
    TestExporter::start(release, files).await
}

/// Lines of its log that are errors. 1.45 logs as one that it has read its file.
fn errors(exporter: &TestExporter) -> Vec<String> {
    let log = exporter.log();
    let lines = log.lines().filter(|line| {
        let is_loaded = line.contains("Loaded") && line.contains("entries from");
        line.contains("level=error") && !is_loaded
    });
    lines.map(ToOwned::to_owned).collect()
}

/// Whether it has each metric of the installed alerts. Only a replica has the state of its link.
async fn has_what_alerts_read(exporter: &TestExporter, role: &str) -> Result<bool> {
    let all = metrics("redis_")?;
    let names = all
        .iter()
        .filter(|name| !name.starts_with("redis_operator_"));
    let of_replicas = "redis_master_link_up";
    let names = names.filter(|name| role == of_replicas || *name != of_replicas);
    for name in names {
        let found = exporter.value(name).await?;
        ensure!(found.is_some(), "no {name}");
    }
    let policy = r#"maxmemory_policy="noeviction""#;
    Ok(all.len() > 10 && exporter.get("/metrics").await?.contains(policy))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_measured_with_the_rights_of_its_user() -> Result<()> {
    let cluster = TestCluster::start(3, 1).await?;
    let primary = cluster.primaries().first().context("no primary")?;
    let replica = cluster.replicas(0).next().context("no replica")?;
    for release in [DebianRelease::Bookworm, DebianRelease::Trixie] {
        for (server, metric, value) in [
            (primary, "redis_connected_slaves", 1.0),
            (replica, "redis_master_link_up", 1.0),
        ] {
            let exporter = beside(server, release, &password(USER)).await?;
            for (metric, wanted) in [
                ("redis_up", 1.0),
                (metric, value),
                ("redis_cluster_state", 1.0),
                ("redis_cluster_known_nodes", 6.0),
                ("redis_cluster_slots_ok", 16384.0),
                ("redis_slowlog_length", 0.0),
            ] {
                let found = exporter.value(metric).await?;
                ensure!(found.is_some(), "{release:?}: no {metric}");
                ensure!(
                    found == Some(wanted) || metric == "redis_slowlog_length",
                    "{release:?}: {metric} is {found:?}"
                );
            }
            let histogram = exporter.value("redis_commands_latencies_usec_count");
            ensure!(
                release == DebianRelease::Bookworm || histogram.await?.is_some(),
                "no histogram"
            );
            ensure!(has_what_alerts_read(&exporter, metric).await?);
            let errors = errors(&exporter);
            ensure!(errors.is_empty(), "{release:?}: {errors:?}");
            // Nor has the server refused anything for want of a right.
            let refused: Vec<redis::Value> = server.call("ACL LOG").await?;
            ensure!(refused.is_empty(), "{release:?}: {refused:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_password_is_read_by_the_probe() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    let (user, old) = (USER.name(), password(USER));
    let exporter = beside(&server, DebianRelease::Trixie, &old).await?;
    ensure!(exporter.is_up().await?);
    let _: String = server.call(&format!("ACL SETUSER {user} >new")).await?;
    exporter.files.write_password("new")?;
    ensure!(exporter.is_up().await?, "the one before still lets it in");
    let answer = exporter.get("/-/reload").await?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let _: String = server.call(&format!("ACL SETUSER {user} <{old}")).await?;
    ensure!(exporter.is_up().await?, "the new one lets it in");
    let errors = errors(&exporter);
    ensure!(errors.is_empty(), "{errors:?}");
    // What it reads is what it uses.
    exporter.files.write_password("newer")?;
    let _: String = exporter.get("/-/reload").await?;
    ensure!(!exporter.is_up().await?, "a wrong one does not");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_a_server_that_is_down() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    for release in [DebianRelease::Bookworm, DebianRelease::Trixie] {
        let exporter = beside(&server, release, "wrong").await?;
        let up = exporter.value("redis_up").await?;
        ensure!(up == Some(0.0), "{release:?}: {up:?}");
        ensure!(!errors(&exporter).is_empty(), "{release:?}");
    }
    Ok(())
}

/// What the Secret that pods mount holds of a certificate of this authority.
fn mounted(authority: &TestAuthority, folder: &Path) -> Result<()> {
    let certificate = authority.sign(7, Flaw::None)?;
    let state = certificate.state(authority, Encryption::Only)?;
    for (name, content) in state.data() {
        fs::write(folder.join(name), content.0)?;
    }
    let trusted = state.wanted.authorities.to_string();
    let trusted = folder.join(authorities_file(&trusted));
    Ok(fs::rename(trusted, folder.join("ca"))?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_read_again_at_each_scrape() -> Result<()> {
    let authorities = [TestAuthority::new("one")?, TestAuthority::new("two")?];
    let files = ["old", "new"].map(|name| {
        let unique = format!("exporter-tls-{}-{name}", std::process::id());
        std::env::temp_dir().join(unique)
    });
    for (authority, folder) in authorities.iter().zip(&files) {
        fs::create_dir_all(folder)?;
        mounted(authority, folder)?;
    }
    let [old, new] = &files;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let path = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let settings = [
        ("tls-port", port.port().to_string()),
        ("tls-cert-file", path(old, &certificate_file(KEY_PRESENTED))),
        ("tls-key-file", path(old, &key_file(KEY_PRESENTED))),
        ("tls-ca-cert-file", path(old, "ca")),
        ("tls-auth-clients", "yes".to_owned()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, &**value));
    let server = RedisServer::cluster_node(&settings).await?;
    let encrypted = SocketAddr::new(server.address().ip(), port.port());
    let files = ExporterFiles::new(encrypted, true)?;
    files.write_password(&password(USER))?;
    mount(old, &files.certificates())?;
    let exporter = TestExporter::start(DebianRelease::Trixie, files).await?;
    ensure!(exporter.is_up().await?, "it shows its certificate");
    let authority = path(new, "ca");
    let _: String = server
        .call(&format!("CONFIG SET tls-ca-cert-file {authority}"))
        .await?;
    ensure!(!exporter.is_up().await?, "that is not trusted any more");
    mount(new, &exporter.files.certificates())?;
    ensure!(exporter.is_up().await?, "it shows the one of now");
    for folder in [old, new] {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Copies the files of one folder over those of another.
fn mount(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
