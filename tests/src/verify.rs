//! The keys of the data set compared with what was written: a key that is there with another value is a lost key.

use crate::{
    client::ClusterClient,
    dataset::{self, Comparison},
};
use anyhow::{Context, Result, bail};
use redis::{Arg, Cmd, Value};

/// Keys asked for at a time.
const BATCH: u64 = 1_000;

/// Reads the keys `0..count` and compares kind, value and time to live with the commands that wrote them.
pub async fn data_set(cluster: &ClusterClient, count: u64) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    for start in (0..count).step_by(usize::try_from(BATCH)?) {
        let written: Vec<Written> = (start..(start + BATCH).min(count))
            .map(Written::key)
            .collect::<Result<_>>()?;
        let reads: Vec<Cmd> = written.iter().map(Written::read).collect();
        let times: Vec<Cmd> = written.iter().map(Written::read_time).collect();
        let values = cluster.pipeline(&reads).await?;
        let times = cluster.pipeline(&times).await?;
        for ((key, value), time) in written.iter().zip(values).zip(times) {
            comparison.keys += 1;
            if let Err(difference) = key.compare(value, &time) {
                comparison.different += 1;
                if comparison.differences.len() < 20 {
                    comparison
                        .differences
                        .push(format!("{}: {difference:#}", key.name));
                }
            }
        }
    }
    Ok(comparison)
}

/// Counts the keys `<prefix>:0` to `<prefix>:<count - 1>` that hold their own number.
pub async fn numbers(cluster: &ClusterClient, prefix: &str, count: u64) -> Result<u64> {
    let mut found = 0;
    for start in (0..count).step_by(usize::try_from(BATCH)?) {
        let numbers = start..(start + BATCH).min(count);
        let reads: Vec<Cmd> = numbers
            .clone()
            .map(|number| command("GET", &writer_key(prefix, number), &[]))
            .collect();
        let values = cluster.pipeline(&reads).await?;
        found += numbers
            .zip(values)
            .filter(|(number, value)| *value == Value::BulkString(number.to_string().into_bytes()))
            .count() as u64;
    }
    Ok(found)
}

/// The key of a writer's number.
pub fn writer_key(prefix: &str, number: u64) -> String {
    format!("{prefix}:{number}")
}

fn command(name: &str, key: &str, arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key).arg(arguments);
    command
}

/// A key as it was written.
struct Written {
    name: String,
    by: String,
    parts: Vec<Vec<u8>>,
    /// Milliseconds to live at the time of writing.
    lives: Option<i64>,
}

impl Written {
    fn key(index: u64) -> Result<Self> {
        let commands = dataset::commands(index);
        let mut arguments = commands.first().context("no command")?.args_iter();
        let mut next = || match arguments.next() {
            Some(Arg::Simple(part)) => Some(part.to_vec()),
            _ => None,
        };
        let by = String::from_utf8(next().context("no name")?)?;
        let name = String::from_utf8(next().context("no key")?)?;
        let mut parts: Vec<Vec<u8>> = std::iter::from_fn(next).collect();
        if by == "ZADD" {
            parts = parts
                .chunks(2)
                .flat_map(|pair| pair.iter().rev().cloned())
                .collect();
        }
        let lives = match commands.get(1).map(|expire| expire.args_iter().nth(2)) {
            None => None,
            Some(Some(Arg::Simple(time))) => Some(std::str::from_utf8(time)?.parse()?),
            Some(_) => bail!("{name}: no time to live"),
        };
        Ok(Self {
            parts: ordered(&by, parts),
            name,
            by,
            lives,
        })
    }

    fn read(&self) -> Cmd {
        let (name, arguments): (&str, &[&str]) = match self.by.as_str() {
            "HSET" => ("HGETALL", &[]),
            "RPUSH" => ("LRANGE", &["0", "-1"]),
            "SADD" => ("SMEMBERS", &[]),
            "ZADD" => ("ZRANGE", &["0", "-1", "WITHSCORES"]),
            "XADD" => ("XRANGE", &["-", "+"]),
            _ => ("GET", &[]),
        };
        command(name, &self.name, arguments)
    }

    fn read_time(&self) -> Cmd {
        command("PTTL", &self.name, &[])
    }

    fn compare(&self, value: Value, time: &Value) -> Result<()> {
        let mut parts = Vec::new();
        flatten(value, &mut parts)?;
        if ordered(&self.by, parts) != self.parts {
            bail!("another value than was written by {}", self.by);
        }
        match (self.lives, time) {
            (None, Value::Int(-1)) => Ok(()),
            (Some(lives), Value::Int(left)) if (1..=lives).contains(left) => Ok(()),
            (lives, time) => bail!("written to live {lives:?} ms, has {time:?} left"),
        }
    }
}

/// The parts in an order that does not depend on the server's hash seeds.
fn ordered(by: &str, mut parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    match by {
        "SADD" => parts.sort(),
        "HSET" => {
            let mut pairs: Vec<Vec<Vec<u8>>> = parts.chunks(2).map(<[_]>::to_vec).collect();
            pairs.sort();
            parts = pairs.into_iter().flatten().collect();
        }
        _ => {}
    }
    parts
}

fn flatten(value: Value, into: &mut Vec<Vec<u8>>) -> Result<()> {
    match value {
        Value::BulkString(part) => into.push(part),
        Value::Array(items) => {
            for item in items {
                flatten(item, into)?;
            }
        }
        Value::Nil => bail!("missing"),
        other => bail!("answers {other:?}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[&str]) -> Value {
        let parts = parts.iter().map(|part| Value::BulkString((*part).into()));
        Value::Array(parts.collect())
    }

    #[test]
    fn a_key_with_another_value_differs() -> Result<()> {
        let key = Written::key(7)?; // a string without a time to live
        let value = |text: &str| Value::BulkString(text.into());
        assert!(key.compare(value("7"), &Value::Int(-1)).is_ok());
        assert!(key.compare(value("8"), &Value::Int(-1)).is_err());
        assert!(key.compare(Value::Nil, &Value::Int(-2)).is_err());
        assert!(key.compare(value("7"), &Value::Int(5)).is_err());
        Ok(())
    }

    #[test]
    fn sets_compare_without_an_order() -> Result<()> {
        let key = Written::key(4)?;
        let mut members: Vec<String> = (0..10).map(|n| (4 * 31 + n).to_string()).collect();
        members.reverse();
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        assert!(key.compare(text(&members), &Value::Int(-1)).is_ok());
        assert!(key.compare(text(&members[1..]), &Value::Int(-1)).is_err());
        Ok(())
    }

    #[test]
    fn a_lost_time_to_live_differs() -> Result<()> {
        let key = Written::key(0)?; // every fifth key expires
        let value = Value::BulkString("0".into());
        assert!(key.compare(value.clone(), &Value::Int(3_600_000)).is_ok());
        assert!(key.compare(value, &Value::Int(-1)).is_err());
        Ok(())
    }
}
