//! RESP, the protocol of Redis: commands into a buffer, replies out of one, without an allocation per argument.

use bytes::BytesMut;

/// Appends one command: an array of bulk strings whose number is given first.
pub struct Command<'a> {
    out: &'a mut BytesMut,
}

impl<'a> Command<'a> {
    /// Starts a command of `parts` parts, its name included; exactly so many must follow.
    pub fn new(out: &'a mut BytesMut, _parts: usize) -> Self {
        Self { out }
    }

    /// Appends an argument.
    pub fn arg(&mut self, _bytes: &[u8]) -> &mut Self {
        todo!()
    }

    /// Appends a number as argument.
    pub fn integer(&mut self, _number: i64) -> &mut Self {
        todo!()
    }

    /// Appends an argument of `length` bytes that `write` appends to the buffer itself.
    pub fn written(&mut self, _length: usize, write: impl FnOnce(&mut BytesMut)) -> &mut Self {
        write(self.out);
        todo!()
    }
}

/// One reply, borrowed from the buffer it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK` and the like.
    Status(&'a [u8]),
    /// `-ERR ...`, without the dash.
    Error(&'a [u8]),
    /// A number.
    Integer(i64),
    /// A string, or nothing.
    Bulk(Option<&'a [u8]>),
    /// A list, or nothing.
    Array(Option<Vec<Reply<'a>>>),
}

/// The bytes are no RESP reply, or larger than allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// The bytes break the protocol.
    #[error("the server's reply breaks the protocol: {0}")]
    Malformed(&'static str),
    /// The reply is longer than the limit.
    #[error("the server's reply is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
}

/// Finds replies in a growing buffer.
pub struct ReplyDecoder {
    limit: usize,
}

impl ReplyDecoder {
    /// A decoder that refuses replies longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// The first reply of the buffer and its length in bytes, which the caller then drops; nothing while it is incomplete.
    pub fn decode<'b>(
        &mut self,
        _buffer: &'b [u8],
    ) -> Result<Option<(Reply<'b>, usize)>, RespError> {
        Err(RespError::TooLong { limit: self.limit })
    }
}
