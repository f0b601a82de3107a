//! A mixed data set: written by key number, so that any key can be made again, and compared between two clusters.

use crate::{client::ClusterClient, noise::Noise};
use anyhow::{Context, Result};
use redis::{Cmd, Value};
use std::fmt::Write;

/// Key number `index`.
pub fn key(index: u64) -> String {
    format!("data:{index}")
}

/// The commands that write key number `index`: seven kinds of value, every fifth key with a time to live of hours.
pub fn commands(index: u64) -> Vec<Cmd> {
    let key = key(index);
    let text = |size: u64| json_text(index, size);
    let mut first = match index % 7 {
        0 => command("SET", &key, [index.to_string()]),
        1 => command("SET", &key, [text(200)]),
        2 => command(
            "HSET",
            &key,
            (0..6).flat_map(|n| [format!("field-{n}"), text(20 + n)]),
        ),
        3 => command("RPUSH", &key, (0..8).map(|n| text(10 + n))),
        4 => command("SADD", &key, (0..10).map(|n| (index * 31 + n).to_string())),
        5 => command(
            "ZADD",
            &key,
            (0..8).flat_map(|n| [format!("{n}.5"), format!("member-{n}-{index}")]),
        ),
        _ => command(
            "XADD",
            &key,
            [format!("{}-1", index + 1), "field".into(), text(40)],
        ),
    };
    first.set_no_response(false);
    let mut commands = vec![first];
    if index.is_multiple_of(5) {
        let mut expire = redis::cmd("PEXPIRE");
        expire.arg(&key).arg(3_600_000 + (index % 1000) * 60_000);
        commands.push(expire);
    }
    commands
}

fn command(name: &str, key: &str, arguments: impl IntoIterator<Item = String>) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    for argument in arguments {
        command.arg(argument);
    }
    command
}

/// Text that compresses like JSON documents do: words repeat, numbers do not.
pub fn json_text(seed: u64, size: u64) -> String {
    let mut noise = Noise::new(seed);
    let mut text = String::with_capacity(usize::try_from(size).unwrap_or(0) + 48);
    text.push('{');
    while (text.len() as u64) < size {
        let word = noise.word();
        let name = [
            "id",
            "customer",
            "amount",
            "currency",
            "status",
            "createdAt",
        ][(word % 6) as usize];
        let _ = write!(text, "\"{name}\":{},", word >> 40); // a String takes everything
    }
    text.push('}');
    text
}

/// Writes the keys `0..count`.
pub async fn fill(cluster: &ClusterClient, count: u64) -> Result<()> {
    const BATCH: u64 = 2_000;
    for start in (0..count).step_by(usize::try_from(BATCH)?) {
        let batch: Vec<Cmd> = (start..(start + BATCH).min(count))
            .flat_map(commands)
            .collect();
        cluster
            .pipeline(&batch)
            .await
            .with_context(|| format!("writing keys from {start}"))?;
    }
    Ok(())
}

/// What a comparison of two clusters found.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Keys compared: type, whole value and time of expiry.
    pub keys: u64,
    /// The first differences, in words.
    pub differences: Vec<String>,
    /// How many there were.
    pub different: u64,
}

impl Comparison {
    fn differ(&mut self, sentence: String) {
        self.different += 1;
        if self.differences.len() < 20 {
            self.differences.push(sentence);
        }
    }
}

/// Compares every key of `wanted` that starts with `prefix` with the same key of `found`, and counts the keys of both.
pub async fn compare(
    wanted: &ClusterClient,
    found: &ClusterClient,
    prefix: &str,
) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    for keys in wanted.scan(prefix).await?.chunks(1_000) {
        let left = contents(wanted, keys).await?;
        let right = contents(found, keys).await?;
        for ((key, left), right) in keys.iter().zip(left).zip(right) {
            comparison.keys += 1;
            if left != right {
                comparison.differ(format!(
                    "{}: wanted {left:?}, found {right:?}",
                    String::from_utf8_lossy(key)
                ));
            }
        }
    }
    let others = found.scan(prefix).await?.len() as u64;
    if others != comparison.keys {
        comparison.differ(format!("{} keys wanted, {others} found", comparison.keys));
    }
    Ok(comparison)
}

/// Type, value in an order that does not depend on the server's hash seeds, and time of expiry of every key.
async fn contents(
    cluster: &ClusterClient,
    keys: &[Vec<u8>],
) -> Result<Vec<(String, Value, Value)>> {
    let ask = |name: &str| {
        keys.iter()
            .map(|key| {
                let mut c = redis::cmd(name);
                c.arg(key);
                c
            })
            .collect::<Vec<_>>()
    };
    let types: Vec<String> = cluster
        .pipeline(&ask("TYPE"))
        .await?
        .into_iter()
        .map(|value| redis::from_redis_value(value).context("TYPE"))
        .collect::<Result<_>>()?;
    let reads: Vec<Cmd> = keys
        .iter()
        .zip(&types)
        .map(|(key, kind)| read(key, kind))
        .collect();
    let values = cluster.pipeline(&reads).await?;
    let expiries = cluster.pipeline(&ask("PEXPIRETIME")).await?;
    Ok(types
        .into_iter()
        .zip(values)
        .zip(expiries)
        .map(|((kind, value), expiry)| {
            let value = ordered(&kind, value);
            (kind, value, expiry)
        })
        .collect())
}

fn read(key: &[u8], kind: &str) -> Cmd {
    let (name, rest): (&str, &[&str]) = match kind {
        "string" => ("GET", &[]),
        "hash" => ("HGETALL", &[]),
        "list" => ("LRANGE", &["0", "-1"]),
        "set" => ("SMEMBERS", &[]),
        "zset" => ("ZRANGE", &["0", "-1", "WITHSCORES"]),
        "stream" => ("XRANGE", &["-", "+"]),
        _ => ("TYPE", &[]),
    };
    let mut command = redis::cmd(name);
    command.arg(key).arg(rest);
    command
}

fn ordered(kind: &str, value: Value) -> Value {
    let Value::Array(mut items) = value else {
        return value;
    };
    if kind == "set" {
        items.sort_by_key(|item| format!("{item:?}"));
    } else if kind == "hash" {
        let mut pairs: Vec<Vec<Value>> = items.chunks(2).map(<[Value]>::to_vec).collect();
        pairs.sort_by_key(|pair| format!("{pair:?}"));
        items = pairs.into_iter().flatten().collect();
    }
    Value::Array(items)
}
