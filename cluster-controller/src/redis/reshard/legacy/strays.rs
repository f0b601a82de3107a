//! Copies that a call which broke off left at its target, or will still leave there.
//!
//! `MIGRATE` deletes a key once the target has acknowledged it (`migrateCommand` in the engine's `cluster.c`), and a source that gives a slot
//! away sends clients on for every key that it does not have: it never gets one back. So what it has was never served by the target, and a
//! copy there is a stray. Left alone it would come back after a client has deleted the key. Nor is it replaced by a later call: the
//! bytes of an earlier one, which the target reads whenever it goes on, would then replace newer ones.

use super::{calls::MigrateCall, reply::MigrateReply};
use crate::redis::reshard::{
    error::{ReshardError, text_of},
    nodes::NodeLink,
};
use common::cluster::slots::Slot;
use redis::{RedisError, Value, cmd, pipe};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

/// What a connection of `MIGRATE` was last heard to send, as `CLIENT LIST` says it.
const COMMANDS: [&str; 4] = ["restore-asking", "select", "auth", "NULL"];
/// Questions without such a connection: one that the target has yet to read from is seen by the next one.
const QUIET_ROUNDS: u32 = 3;
const MOST_ROUNDS: u32 = 20;

/// What the source had of a call when that broke off, as a hash of each value: a copy of it that turns up at the target when the source has
/// it no more is one that a client has deleted meanwhile.
#[derive(Debug, Default)]
pub(super) struct LeftValues(HashMap<Vec<u8>, u64>);

impl LeftValues {
    /// Takes note of it, right after the call: of what was moved by then it knows nothing any more.
    pub(super) async fn note(
        &mut self,
        source: &NodeLink,
        slot: Slot,
        call: &MigrateCall,
    ) -> Result<(), ReshardError> {
        let mut questions = pipe();
        for key in &call.keys {
            questions.cmd("DUMP").arg(key);
        }
        let values = source
            .each::<Option<Vec<u8>>>(&[slot], "DUMP", questions)
            .await?;
        for (key, value) in call.keys.iter().zip(values) {
            // A key that it does not have is asked for elsewhere.
            match value {
                Ok(Some(value)) => self.0.insert(key.clone(), hash(&value)),
                Ok(None) | Err(_) => self.0.remove(key),
            };
        }
        Ok(())
    }
}

fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Removes them from the target, and ends the calls that would leave more. No other call from this source to it may be under way.
pub(super) async fn remove_strays(
    source: &NodeLink,
    target: &NodeLink,
    (slot, call): (Slot, &MigrateCall),
    left: &LeftValues,
) -> Result<(), ReshardError> {
    // Of two sources on one machine, one would end the connection that the other has just opened.
    let _alone = target.strays.lock().await;
    // What is watched is watched for a connection. This one was accepted after those of the calls that are to end, so that it sees all of them.
    let target = target.reconnected().await?;
    end_calls(source.address.ip(), &target).await?;
    for key in &call.keys {
        remove_stray(source, &target, (slot, key), left).await?;
    }
    Ok(())
}

async fn end_calls(source: IpAddr, target: &NodeLink) -> Result<(), ReshardError> {
    let mut quiet = 0;
    for _ in 0..MOST_ROUNDS {
        let question = cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal").clone();
        let list: String = target.ask("CLIENT LIST", &question).await?;
        let calls = calls_in(&list, source);
        quiet = if calls.is_empty() { quiet + 1 } else { 0 };
        if quiet >= QUIET_ROUNDS {
            break;
        }
        for id in calls {
            let kill = cmd("CLIENT").arg("KILL").arg("ID").arg(id).clone();
            let ended: u64 = target.ask("CLIENT KILL", &kill).await?;
            tracing::debug!(node = %target.id, id, ended, "a call that broke off is ended");
        }
    }
    Ok(())
}

/// Ids of the connections over which a source may have sent keys. On one machine a server is reached from the usual loopback address.
fn calls_in(list: &str, source: IpAddr) -> Vec<u64> {
    let call = |line: &str| {
        let field = |name: &str| {
            let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
            fields.find_map(|(key, value)| (key == name).then_some(value))
        };
        let from: SocketAddr = field("addr")?.parse().ok()?;
        let from = from.ip().to_canonical();
        let is_of_source = from == source || (from.is_loopback() && source.is_loopback());
        (is_of_source && COMMANDS.contains(&field("cmd")?)).then(|| field("id")?.parse().ok())?
    };
    list.lines().filter_map(call).collect()
}

fn is_down(error: &RedisError) -> bool {
    MigrateReply::of_error(&text_of(error)) == MigrateReply::Down
}

/// A client that writes the key at the target, which it is sent to once the source has it no more, ends the attempt: that value stays.
async fn remove_stray(
    source: &NodeLink,
    target: &NodeLink,
    (slot, key): (Slot, &Vec<u8>),
    left: &LeftValues,
) -> Result<(), ReshardError> {
    let refused =
        |link: &NodeLink, error: &RedisError| ReshardError::of_text(link.id, slot, text_of(error));
    let before = left.0.get(key);
    let mut watch = pipe();
    watch.cmd("ASKING").ignore().cmd("WATCH").arg(key);
    let question = if before.is_some() { "DUMP" } else { "EXISTS" };
    watch.cmd("ASKING").ignore().cmd("TTL").arg(key);
    watch.cmd("ASKING").ignore().cmd(question).arg(key);
    let answers = target.each::<Value>(&[slot], "WATCH", watch).await?;
    let (mut ends, mut copy) = (false, Value::Nil);
    for answer in answers {
        // Of a key without a time to live, or of none, it is negative.
        ends |= matches!(copy, Value::Int(seconds) if seconds >= 0);
        copy = match answer {
            Ok(copy) => copy,
            // Both say so while the cluster is down: the next call waits for it.
            Err(error) if is_down(&error) => return Ok(()),
            Err(error) => return Err(refused(target, &error)),
        };
    }
    let mut has_it = pipe();
    has_it.cmd("EXISTS").arg(key);
    let has_it = source.each::<u64>(&[slot], "EXISTS", has_it).await?;
    let has_it = match has_it.into_iter().next() {
        Some(Ok(count)) => count > 0,
        Some(Err(error)) if text_of(&error).starts_with("ASK ") => false,
        Some(Err(error)) if is_down(&error) => return Ok(()),
        Some(Err(error)) => return Err(refused(source, &error)),
        None => false,
    };
    let exists = !matches!(copy, Value::Nil | Value::Int(0));
    // What ends by itself is more likely written again, such as a lock.
    let was_left = if let Value::BulkString(value) = &copy {
        !ends && before == Some(&hash(value))
    } else {
        false
    };
    let is_stray = exists && (has_it || was_left);
    let mut end = pipe();
    if is_stray {
        end.cmd("ASKING").ignore().cmd("MULTI").ignore();
        end.cmd("UNLINK").arg(key).ignore().cmd("EXEC");
    } else {
        end.cmd("UNWATCH");
    }
    for answer in target.each::<Value>(&[slot], "EXEC", end).await? {
        answer.map_err(|error| refused(target, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_with_keys_of_the_source_are_found() {
        let list = "id=3 addr=10.0.0.1:4000 laddr=10.0.0.9:6379 fd=8 name= cmd=restore-asking user=default\n\
                    id=4 addr=10.0.0.1:4001 laddr=10.0.0.9:6379 fd=9 name= cmd=NULL user=default\n\
                    id=5 addr=10.0.0.1:4002 laddr=10.0.0.9:6379 fd=9 name= cmd=get user=default\n\
                    id=6 addr=10.0.0.2:4000 laddr=10.0.0.9:6379 fd=9 name= cmd=restore-asking user=default\n\
                    id=7 addr=[::ffff:10.0.0.1]:4003 laddr=10.0.0.9:6379 fd=9 name= cmd=select user=default\n";
        assert_eq!(calls_in(list, [10, 0, 0, 1].into()), [3, 4, 7]);
        let local = "id=8 addr=127.0.0.1:4000 cmd=restore-asking";
        assert_eq!(calls_in(local, [127, 0, 0, 9].into()), [8]);
        assert!(calls_in(local, [10, 0, 0, 1].into()).is_empty());
    }
}
