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

/// Commands that a server before 7.0 keeps in its log of slow commands, which is set to log every one.
pub(super) const LOGGED: usize = 1_000_000;

/// Number, time, duration, words, address and name of the client.
type LogEntry = (u64, u64, u64, Vec<Vec<u8>>, Vec<u8>, Vec<u8>);

/// How often the server was sent each command since its process started, in lower case, for example `cluster|addslots`.
pub async fn executed(server: &RedisServer) -> Result<BTreeMap<String, u64>> {
    let mut counts = counted(server).await?;
    if !server.program().at_least(7, 0) {
        for subcommand in logged(server).await? {
            *counts.entry(subcommand).or_default() += 1;
        }
        // That was this function.
        counts.retain(|name, _| !name.starts_with("slowlog"));
    }
    Ok(counts)
}

/// The subcommands in the log of slow commands.
async fn logged(server: &RedisServer) -> Result<Vec<String>> {
    let entries: Vec<LogEntry> = server.call(&format!("SLOWLOG GET {LOGGED}")).await?;
    ensure!(
        entries.len() < LOGGED,
        "{} may have dropped entries of its log",
        server.address()
    );
    let words = entries.iter().filter_map(|(_, _, _, words, _, _)| {
        let [command, subcommand, ..] = words.as_slice() else {
            return None;
        };
        let text = |word: &[u8]| String::from_utf8_lossy(word).to_lowercase();
        Some(format!("{}|{}", text(command), text(subcommand)))
    });
    Ok(words.collect())
}

async fn counted(server: &RedisServer) -> Result<BTreeMap<String, u64>> {
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
