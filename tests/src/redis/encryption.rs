//! What the servers of a cluster send each other: encrypted or not.

use super::PodCluster;
use crate::wait::within;
use anyhow::{Result, ensure};
use crds::{CLIENT_PORT, TLS_PORT};
use k8s_openapi::jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// For links to be made again.
const LIMIT: Duration = Duration::from_secs(30);

impl PodCluster {
    /// Waits until every link of the bus was made after this moment.
    pub async fn links_are_new(&self, since: Timestamp) -> Result<()> {
        within(LIMIT, "all links of the bus are new", async || {
            let mut all_are_new = true;
            for index in 0..self.len() {
                let server = self.server(index);
                let links: Vec<BTreeMap<String, String>> = server.call("CLUSTER LINKS").await?;
                all_are_new &= links.len() == 2 * (self.len() - 1);
                for link in &links {
                    let made: i64 = link["create-time"].parse()?;
                    all_are_new &= made >= since.as_millisecond();
                }
            }
            Ok(all_are_new)
        })
        .await
    }

    /// Whether every server encrypts what it sends others, or none does; waits until every replica copies so.
    pub async fn encrypt(&self, wanted: bool) -> Result<()> {
        let (value, port) = if wanted {
            ("yes", TLS_PORT)
        } else {
            ("no", CLIENT_PORT)
        };
        for index in 0..self.len() {
            let server = self.server(index);
            for setting in ["tls-cluster", "tls-replication"] {
                let [_, found]: [String; 2] = server.call(&format!("CONFIG GET {setting}")).await?;
                ensure!(found == value, "server {index}: {setting} {found}");
            }
            if server.info("role").await? == "slave" {
                within(LIMIT, "copies from the port that is used", async || {
                    let link = server.info("master_link_status").await?;
                    Ok(link == "up" && server.info("master_port").await? == port.to_string())
                })
                .await?;
            }
        }
        Ok(())
    }
}
