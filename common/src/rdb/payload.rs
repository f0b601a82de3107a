//! The payload of RESTORE: what DUMP would have answered for a value.

use bytes::BytesMut;

use super::value_type::ValueType;

/// Length of the payload of a value whose encoding is `body` bytes long.
pub fn restore_payload_length(body: usize) -> usize {
    1 + body + 2 + 8
}

/// Appends the payload: type byte, body, lowest RDB version that knows the type, CRC-64.
pub fn restore_payload(_kind: ValueType, _body: &[u8], _out: &mut BytesMut) {
    todo!()
}
