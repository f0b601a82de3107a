//! A cluster client for tests and demonstrations: one connection a primary, commands routed by slot in pipelines.

use crate::login::{self, ClientLogin};
use anyhow::{Context, Result, anyhow, bail};
use common::cluster::slots::Slot;
use futures::future::try_join_all;
use redis::{Arg, Cmd, Value, aio::MultiplexedConnection};
use std::time::Duration;

/// Longest wait for one pipeline.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Connections to every primary of a cluster, as one of its nodes named them.
pub struct ClusterClient {
    primaries: Vec<Primary>,
}

struct Primary {
    ranges: Vec<(u16, u16)>,
    connection: MultiplexedConnection,
}

impl ClusterClient {
    /// Asks the node at `address` (`host:port`) for the primaries and connects to all of them.
    pub async fn connect(address: &str) -> Result<Self> {
        Self::connect_as(address, &ClientLogin::default()).await
    }

    /// The same, each in this way.
    pub async fn connect_as(address: &str, login: &ClientLogin) -> Result<Self> {
        let mut seed = open(address, login).await?;
        let slots: Vec<(u16, u16, Vec<Value>)> = redis::cmd("CLUSTER")
            .arg("SLOTS")
            .query_async::<Vec<Vec<Value>>>(&mut seed)
            .await?
            .into_iter()
            .map(slot_row)
            .collect::<Result<_>>()?;
        let mut primaries: Vec<(String, Vec<(u16, u16)>)> = Vec::new();
        for (start, end, node) in slots {
            let mut node = node.into_iter();
            let host: String = redis::from_redis_value(node.next().unwrap_or(Value::Nil))?;
            let port: u16 = redis::from_redis_value(node.next().unwrap_or(Value::Nil))?;
            let address = format!("{host}:{port}");
            match primaries.iter_mut().find(|(known, _)| *known == address) {
                Some((_, ranges)) => ranges.push((start, end)),
                None => primaries.push((address, vec![(start, end)])),
            }
        }
        let primaries = try_join_all(primaries.into_iter().map(|(address, ranges)| async move {
            anyhow::Ok(Primary {
                ranges,
                connection: open(&address, login).await?,
            })
        }))
        .await?;
        Ok(Self { primaries })
    }

    /// Sends every command to the primary of its first key; the replies come back in the order of the commands.
    pub async fn pipeline(&self, commands: &[Cmd]) -> Result<Vec<Value>> {
        let mut routed: Vec<(redis::Pipeline, Vec<usize>)> = self
            .primaries
            .iter()
            .map(|_| (redis::pipe(), Vec::new()))
            .collect();
        for (position, command) in commands.iter().enumerate() {
            let (pipeline, positions) = &mut routed[self.primary_of(command)?];
            pipeline.add_command(command.clone());
            positions.push(position);
        }
        let replies = try_join_all(
            self.primaries
                .iter()
                .zip(routed)
                .filter(|(_, (_, p))| !p.is_empty())
                .map(|(primary, (pipeline, positions))| async move {
                    let mut connection = primary.connection.clone();
                    let values: Vec<Value> =
                        tokio::time::timeout(TIMEOUT, pipeline.query_async(&mut connection))
                            .await
                            .context("pipeline")??;
                    anyhow::Ok((positions, values))
                }),
        )
        .await?;
        let mut ordered = vec![Value::Nil; commands.len()];
        for (positions, values) in replies {
            for (position, value) in positions.into_iter().zip(values) {
                ordered[position] = value;
            }
        }
        Ok(ordered)
    }

    /// Every key of every primary that starts with `prefix`, sorted.
    pub async fn scan(&self, prefix: &str) -> Result<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        for primary in &self.primaries {
            let mut connection = primary.connection.clone();
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{prefix}*"))
                    .arg("COUNT")
                    .arg(5_000);
                let (next, found): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await?;
                keys.extend(found);
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    fn primary_of(&self, command: &Cmd) -> Result<usize> {
        let Some(Arg::Simple(key)) = command.args_iter().nth(1) else {
            bail!("a command without a key cannot be routed");
        };
        let slot = Slot::of_key(key).get();
        self.primaries
            .iter()
            .position(|primary| {
                primary
                    .ranges
                    .iter()
                    .any(|(start, end)| (*start..=*end).contains(&slot))
            })
            .ok_or_else(|| anyhow!("slot {slot} has no primary"))
    }
}

fn slot_row(row: Vec<Value>) -> Result<(u16, u16, Vec<Value>)> {
    let mut row = row.into_iter();
    let start = redis::from_redis_value(row.next().unwrap_or(Value::Nil))?;
    let end = redis::from_redis_value(row.next().unwrap_or(Value::Nil))?;
    match row.next() {
        Some(Value::Array(node)) => Ok((start, end, node)),
        other => bail!("CLUSTER SLOTS named no primary for {start}-{end}: {other:?}"),
    }
}

async fn open(address: &str, login: &ClientLogin) -> Result<MultiplexedConnection> {
    let mut found = tokio::net::lookup_host(address).await?;
    let found = found
        .next()
        .with_context(|| format!("{address} has no address"))?;
    let opened = login::connect(found, Some(login), TIMEOUT).await;
    opened.with_context(|| format!("connecting to {address}"))
}
