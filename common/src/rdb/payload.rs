//! The payload of RESTORE: what DUMP would have answered for a value.
//!
//! Type byte and body as in the RDB, the RDB version as 2 bytes and the CRC-64 of all before as 8, both little-endian.
//! A server refuses a version above its own, so the lowest that knows the type is stamped: data of a newer server
//! restores into an older one wherever that knows the types.

use bytes::{BufMut, BytesMut};

use super::checksum::crc64;
use super::value_type::ValueType;

/// Bytes of a payload besides the body.
const OVERHEAD: usize = 1 + 2 + 8;

/// Length of the payload of a value whose encoding is `body` bytes long.
pub fn restore_payload_length(body: usize) -> usize {
    body.saturating_add(OVERHEAD)
}

/// Appends the payload of a value; `body` is what [`Key::value`](super::Key::value) covers.
pub fn restore_payload(kind: ValueType, body: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.reserve(restore_payload_length(body.len()));
    out.put_u8(kind.code());
    out.put_slice(body);
    out.put_u16_le(kind.minimum_version());
    let crc = crc64(out.get(start..).unwrap_or_default());
    out.put_u64_le(crc);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_what_dump_answers() {
        // DUMP of the string "10" by Redis 7.0, with version 6 in place of its 10 and the checksum to match.
        let mut out = BytesMut::from("before".as_bytes());
        restore_payload(ValueType::String, &[0xc0, 10], &mut out);
        let payload = out.split_off(6);
        assert_eq!(payload.len(), restore_payload_length(2));
        assert_eq!(payload.get(..5).unwrap(), [0, 0xc0, 10, 6, 0]);
        assert_eq!(
            payload.get(5..).unwrap(),
            crc64(&[0, 0xc0, 10, 6, 0]).to_le_bytes()
        );
    }
}
