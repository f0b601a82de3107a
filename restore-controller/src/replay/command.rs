//! Writes a record as a RESTORE command, straight from the bytes of its block.

use super::batch::CommandBatch;
use common::{
    cluster::{resp::CommandWriter, slots::Slot},
    rdb::{
        ValueType,
        payload::{restore_payload, restore_payload_length},
    },
};

/// The longest argument a server takes (`proto-max-bulk-len`).
pub const LONGEST_ARGUMENT: usize = 512 * 1024 * 1024;

/// A key as the backup holds it.
#[derive(Clone, Copy, Debug)]
pub struct KeyRecord<'a> {
    /// Name of the key, any bytes.
    pub key: &'a [u8],
    /// Type of the value.
    pub kind: ValueType,
    /// The value as the RDB holds it, without its type.
    pub body: &'a [u8],
    /// When it expires, in milliseconds since 1970.
    pub expire_ms: Option<i64>,
    /// How recently it was used, as far as the server kept that.
    pub usage: Usage,
}

/// What the server's eviction knows about a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Usage {
    /// Nothing.
    #[default]
    Unknown,
    /// Seconds since it was last used (LRU).
    Idle(u64),
    /// Logarithmic counter of its uses (LFU).
    Frequency(u8),
}

/// Appends `RESTORE key ttl payload REPLACE [ABSTTL] [IDLETIME s | FREQ n]`. REPLACE makes it safe to send twice.
pub fn encode(slot: Slot, record: &KeyRecord<'_>, batch: &mut CommandBatch) {
    let parts = 5
        + usize::from(record.expire_ms.is_some())
        + 2 * usize::from(record.usage != Usage::Unknown);
    let mut command = CommandWriter::new(&mut batch.bytes, parts);
    command
        .arg(b"RESTORE")
        .arg(record.key)
        .integer(record.expire_ms.unwrap_or(0))
        .written(restore_payload_length(record.body.len()), |out| {
            restore_payload(record.kind, record.body, out);
        })
        .arg(b"REPLACE");
    if record.expire_ms.is_some() {
        command.arg(b"ABSTTL");
    }
    match record.usage {
        Usage::Unknown => {}
        Usage::Idle(seconds) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            command.arg(b"IDLETIME").integer(seconds);
        }
        Usage::Frequency(counter) => {
            command.arg(b"FREQ").integer(counter.into());
        }
    }
    batch.end_command(slot);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(record: &KeyRecord<'_>) -> String {
        let mut batch = CommandBatch::default();
        encode(Slot::of_key(record.key), record, &mut batch);
        assert_eq!(batch.commands(), 1);
        batch.bytes.escape_ascii().to_string()
    }

    #[test]
    fn a_key_without_expiry_is_five_parts() {
        let record = KeyRecord {
            key: b"k",
            kind: ValueType::String,
            body: b"\x01v",
            expire_ms: None,
            usage: Usage::Unknown,
        };
        let wire = encoded(&record);
        let start = r"*5\r\n$7\r\nRESTORE\r\n$1\r\nk\r\n$1\r\n0\r\n$13\r\n\x00\x01v\x06\x00";
        assert!(wire.starts_with(start), "{wire}");
        assert!(wire.ends_with(r"\r\n$7\r\nREPLACE\r\n"), "{wire}");
    }

    #[test]
    fn expiry_and_usage_are_kept() {
        let record = KeyRecord {
            key: b"k",
            kind: ValueType::String,
            body: b"\x01v",
            expire_ms: Some(1_900_000_000_123),
            usage: Usage::Frequency(7),
        };
        let wire = encoded(&record);
        assert!(wire.starts_with(r"*8\r\n"), "{wire}");
        assert!(wire.contains(r"$13\r\n1900000000123\r\n"), "{wire}");
        assert!(
            wire.ends_with(r"$6\r\nABSTTL\r\n$4\r\nFREQ\r\n$1\r\n7\r\n"),
            "{wire}"
        );
        let idle = KeyRecord {
            usage: Usage::Idle(90),
            ..record
        };
        assert!(encoded(&idle).ends_with(r"$8\r\nIDLETIME\r\n$2\r\n90\r\n"));
    }
}
