//! What servers were sent, by their own count: `INFO commandstats`.

use super::RedisServer;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// Commands that destroy keys or give slots away. DELSLOTS is among them: the servers that are asked own slots.
const DESTRUCTIVE: [&str; 7] = [
    "flushall",
    "flushdb",
    "swapdb",
    "cluster|reset",
    "cluster|flushslots",
    "cluster|delslots",
    "cluster|delslotsrange",
];

/// How often the server was sent each command since its process started, in lower case, for example `cluster|addslots`.
pub async fn executed(server: &RedisServer) -> Result<BTreeMap<String, u64>> {
    let stats: String = server.call("INFO commandstats").await?;
    let lines = stats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_"));
    lines
        .map(|line| {
            let counted = line.split_once(":calls=").and_then(|(name, rest)| {
                let calls = rest.split(',').next()?.parse().ok()?;
                Some((name.to_owned(), calls))
            });
            counted.with_context(|| format!("INFO commandstats: {line}"))
        })
        .collect()
}

/// Fails if one of the servers, all of which answer, was sent a destructive command.
pub async fn nothing_destroyed(servers: impl IntoIterator<Item = &RedisServer>) -> Result<()> {
    for server in servers {
        refuse_destruction(server, &executed(server).await?)?;
    }
    Ok(())
}

pub(super) fn refuse_destruction(
    server: &RedisServer,
    executed: &BTreeMap<String, u64>,
) -> Result<()> {
    for command in DESTRUCTIVE {
        ensure!(
            !executed.contains_key(command),
            "{} was sent {command}",
            server.address()
        );
    }
    Ok(())
}
