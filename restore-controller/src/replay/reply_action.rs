//! What a node's error reply means for the replay: go elsewhere, wait, or give up.

use common::cluster::slots::Slot;
use std::net::{IpAddr, SocketAddr};

/// What to do with a command that was not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyAction {
    /// The slot belongs to another node now. `None`: the node is named by something that is not an address.
    Moved {
        /// The slot that another node serves.
        slot: Slot,
        /// Where its primary listens; none: the reply names no address.
        primary: Option<SocketAddr>,
    },
    /// The slot is being moved, and this key is to be written at its new place already.
    Ask {
        /// Where to, once.
        primary: Option<SocketAddr>,
    },
    /// Try again after a while.
    Wait(RetryReason),
    /// Another try would be refused as well.
    Refused(Refusal),
}

/// Why a command is sent again after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetryReason {
    /// TRYAGAIN.
    #[error("the slot is being moved (TRYAGAIN)")]
    TryAgain,
    /// CLUSTERDOWN.
    #[error("the cluster does not serve the slot (CLUSTERDOWN)")]
    ClusterDown,
    /// LOADING.
    #[error("the node is loading its data (LOADING)")]
    Loading,
    /// BUSY: a script or function runs for too long.
    #[error("the node is busy with a script (BUSY)")]
    Busy,
    /// NOREPLICAS.
    #[error(
        "the node has fewer linked replicas than min-replicas-to-write asks for (NOREPLICAS): wait for the replicas or lower the setting"
    )]
    TooFewReplicas,
    /// MISCONF.
    #[error("the node cannot save to its disk (MISCONF): see its log")]
    CannotPersist,
    /// No connection, or it broke.
    #[error("the node cannot be reached")]
    Disconnected,
}

/// Why a node refuses for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// OOM.
    #[error("its memory is full (OOM): give the target a higher maxmemory or more shards")]
    OutOfMemory,
    /// READONLY.
    #[error("it is a replica (READONLY)")]
    ReadOnly,
    /// NOAUTH, NOPERM or WRONGPASS.
    #[error("the controller may not write there: {0}")]
    NotPermitted(String),
    /// The server does not take the value.
    #[error("it does not take the value: {0}")]
    Payload(String),
    /// Anything else.
    #[error("it answered: {0}")]
    Other(String),
}

/// Reads an error reply, without its leading dash.
pub fn read_error(reply: &[u8]) -> ReplyAction {
    let text = String::from_utf8_lossy(reply);
    let (code, rest) = text.split_once(' ').unwrap_or((&text, ""));
    match code {
        "MOVED" => {
            let (slot, primary) = redirect(rest);
            match slot {
                Some(slot) => ReplyAction::Moved { slot, primary },
                None => ReplyAction::Refused(Refusal::Other(text.into_owned())),
            }
        }
        "ASK" => ReplyAction::Ask {
            primary: redirect(rest).1,
        },
        "TRYAGAIN" => ReplyAction::Wait(RetryReason::TryAgain),
        "CLUSTERDOWN" => ReplyAction::Wait(RetryReason::ClusterDown),
        "LOADING" | "MASTERDOWN" => ReplyAction::Wait(RetryReason::Loading),
        "BUSY" => ReplyAction::Wait(RetryReason::Busy),
        "OOM" => ReplyAction::Refused(Refusal::OutOfMemory),
        "MISCONF" => ReplyAction::Wait(RetryReason::CannotPersist),
        "NOREPLICAS" => ReplyAction::Wait(RetryReason::TooFewReplicas),
        "READONLY" => ReplyAction::Refused(Refusal::ReadOnly),
        "NOAUTH" | "NOPERM" | "WRONGPASS" => {
            ReplyAction::Refused(Refusal::NotPermitted(text.into_owned()))
        }
        // Texts of `restoreCommand` in Redis' src/cluster.c.
        "ERR" if rest.starts_with("Bad data format") || rest.starts_with("DUMP payload") => {
            ReplyAction::Refused(Refusal::Payload(rest.to_owned()))
        }
        _ => ReplyAction::Refused(Refusal::Other(text.into_owned())),
    }
}

/// `3999 127.0.0.1:6381`: an IPv6 address is written without brackets.
fn redirect(rest: &str) -> (Option<Slot>, Option<SocketAddr>) {
    let mut words = rest.split(' ');
    let slot = words.next().and_then(|slot| slot.parse().ok());
    let primary = words
        .next()
        .and_then(|address| address.rsplit_once(':'))
        .and_then(|(host, port)| {
            let host: IpAddr = host.parse().ok()?;
            let port: u16 = port.parse().ok()?;
            Some(SocketAddr::new(host, port))
        });
    (slot, primary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    #[test]
    fn redirects_name_slot_and_primary() {
        let primary = Some("127.0.0.1:6381".parse().unwrap());
        assert_eq!(
            read_error(b"MOVED 3999 127.0.0.1:6381"),
            ReplyAction::Moved {
                slot: slot(3999),
                primary
            }
        );
        assert_eq!(
            read_error(b"ASK 3999 127.0.0.1:6381"),
            ReplyAction::Ask { primary }
        );
        assert_eq!(
            read_error(b"MOVED 1 fd00::2:6379"),
            ReplyAction::Moved {
                slot: slot(1),
                primary: Some("[fd00::2]:6379".parse().unwrap())
            }
        );
    }

    #[test]
    fn a_primary_without_an_address_is_looked_up() {
        for address in ["redis-0.example:6379", ":6379", "?"] {
            assert_eq!(
                read_error(format!("MOVED 5 {address}").as_bytes()),
                ReplyAction::Moved {
                    slot: slot(5),
                    primary: None
                }
            );
        }
    }

    #[test]
    fn temporary_states_are_retried() {
        for (reply, reason) in [
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                RetryReason::TryAgain,
            ),
            ("CLUSTERDOWN The cluster is down", RetryReason::ClusterDown),
            (
                "LOADING Redis is loading the dataset in memory",
                RetryReason::Loading,
            ),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                RetryReason::CannotPersist,
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                RetryReason::TooFewReplicas,
            ),
        ] {
            assert_eq!(read_error(reply.as_bytes()), ReplyAction::Wait(reason));
        }
    }

    #[test]
    fn permanent_states_are_refusals_with_a_cure() {
        for (reply, refusal) in [
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Refusal::OutOfMemory,
            ),
            (
                "READONLY You can't write against a read only replica.",
                Refusal::ReadOnly,
            ),
            (
                "ERR Bad data format",
                Refusal::Payload("Bad data format".into()),
            ),
            (
                "ERR DUMP payload version or checksum are wrong",
                Refusal::Payload("DUMP payload version or checksum are wrong".into()),
            ),
            (
                "ERR unknown command",
                Refusal::Other("ERR unknown command".into()),
            ),
        ] {
            assert_eq!(read_error(reply.as_bytes()), ReplyAction::Refused(refusal));
        }
        assert!(Refusal::OutOfMemory.to_string().contains("maxmemory"));
    }

    #[test]
    fn malformed_replies_are_never_redirects() {
        for reply in ["MOVED", "MOVED x 1.2.3.4:5", "MOVED 16384 1.2.3.4:5", ""] {
            assert!(matches!(
                read_error(reply.as_bytes()),
                ReplyAction::Refused(Refusal::Other(_))
            ));
        }
    }
}
