//! What servers do while they come to encrypt and back: the settings of each step on real servers, without a controller to give them.

use anyhow::{Result, ensure};
use cluster_controller::certificates::encryption::settings;
use crds::Encryption::{self, Both, Only, Prepared};
use k8s_openapi::jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};
use tests::{
    certificates::{Flaw, TestAuthority},
    cluster_stage::addresses,
    drive::drive_pods,
    login::ClientLogin,
    redis::{MountedUsers, PodCluster, PodStorage},
    servers,
};

const LIMIT: Duration = Duration::from_secs(40);
const KEYS: usize = 300;
/// What a server says that was built so.
const WITHOUT_TLS: &str = "Failed finding TLS support";

/// A cluster whose pods have these files.
async fn formed(files: &BTreeMap<String, Vec<u8>>) -> Result<PodCluster> {
    let users = MountedUsers::Own;
    let mut cluster = PodCluster::start_at(addresses(), PodStorage::Memory, users).await?;
    cluster.kill_all().await?;
    for index in 0..cluster.len() {
        cluster.wipe(index)?;
        cluster.server(index).mount_certificates(files)?;
    }
    cluster.restart_all().await?;
    let drive = drive_pods(&cluster, &cluster.wanted(false), LIMIT).await;
    let problems = &drive.assessment.problems;
    ensure!(drive.assessment.is_healthy(), "{problems:#?}");
    cluster.fill_and_replicate(KEYS).await?;
    Ok(cluster)
}

/// What the controller sends to every server.
async fn take(cluster: &PodCluster, encryption: Encryption) -> Result<()> {
    let words = settings(encryption).map(|(name, value)| format!("{name} {value}"));
    let command = format!("CONFIG SET {}", words.join(" "));
    for index in 0..cluster.len() {
        cluster.server(index).call::<()>(&command).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_reaches_links_and_replicas() -> Result<()> {
    if !servers::selected()?.at_least(7, 0) {
        println!("SKIPPED: before 7.0 ports cannot be changed while a server runs");
        return Ok(());
    }
    let authority = TestAuthority::new("a")?;
    let certificate = authority.sign(1, Flaw::None)?;
    let state = certificate.state(&authority, Prepared)?;
    let files = state.data().into_iter();
    let files = files.map(|(name, content)| (name, content.0)).collect();
    let cluster = match formed(&files).await {
        Err(error) if format!("{error:#}").contains(WITHOUT_TLS) => {
            println!("SKIPPED: this server was built without TLS");
            return Ok(());
        }
        formed => formed?,
    };
    let encrypted = ClientLogin::encrypted(certificate.transport(&[&certificate])?);
    for step in [Both, Only, Both, Prepared, Both] {
        let since = Timestamp::now();
        take(&cluster, step).await?;
        let login = step.is_used().then_some(&encrypted);
        cluster.log_in(login);
        let explained = async {
            cluster.links_are_new(since).await?;
            cluster.encrypt(step.is_used()).await?;
            // A link that breaks later is made again.
            for shard in 0..PodCluster::SHARDS {
                let primary = cluster.primary_of(shard).await?;
                let server = cluster.server(primary);
                server.call::<()>("CLIENT KILL TYPE replica").await?;
            }
            cluster.encrypt(step.is_used()).await?;
            cluster.replicated().await?;
            cluster.check(KEYS).await
        };
        let explained = explained.await;
        cluster.explained(explained).await?;
        println!("{step:?}");
    }
    Ok(())
}
