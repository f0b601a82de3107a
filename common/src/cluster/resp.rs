//! RESP, the protocol of Redis: commands into a buffer, replies out of one, without an allocation per argument.
//!
//! Version 2 of the protocol (Redis serialization protocol specification), which every server speaks unasked.

use bytes::{BufMut, BytesMut};

/// Replies nest no deeper than this; what the servers send stays below 5.
const MAX_DEPTH: u8 = 8;

/// A line of a reply (status, error, number, length) is never longer.
const MAX_LINE: usize = 64 * 1024;

/// Appends one command: an array of bulk strings whose number is given first.
pub struct CommandWriter<'a> {
    out: &'a mut BytesMut,
}

impl<'a> CommandWriter<'a> {
    /// Starts a command of `parts` parts, its name included; exactly so many must follow.
    pub fn new(out: &'a mut BytesMut, parts: usize) -> Self {
        header(out, b'*', parts);
        Self { out }
    }

    /// Appends a whole command whose parts are all at hand.
    pub fn write(out: &'a mut BytesMut, parts: &[&[u8]]) {
        let mut command = Self::new(out, parts.len());
        for part in parts {
            command.arg(part);
        }
    }

    /// Appends an argument.
    pub fn arg(&mut self, bytes: &[u8]) -> &mut Self {
        self.written(bytes.len(), |out| out.put_slice(bytes))
    }

    /// Appends a number as argument.
    pub fn integer(&mut self, number: i64) -> &mut Self {
        let mut digits = Digits::default();
        let text = digits.signed(number);
        self.written(text.len(), |out| out.put_slice(text))
    }

    /// Appends an argument of `length` bytes that `write` appends to the buffer itself.
    pub fn written(&mut self, length: usize, write: impl FnOnce(&mut BytesMut)) -> &mut Self {
        header(self.out, b'$', length);
        self.out.reserve(length.saturating_add(2));
        let start = self.out.len();
        write(self.out);
        debug_assert_eq!(
            self.out.len() - start,
            length,
            "an argument must be as long as announced"
        );
        self.out.put_slice(b"\r\n");
        self
    }
}

fn header(out: &mut BytesMut, mark: u8, number: usize) {
    let mut digits = Digits::default();
    out.put_u8(mark);
    out.put_slice(digits.unsigned(number as u64));
    out.put_slice(b"\r\n");
}

/// Room for a number in decimal.
#[derive(Default)]
struct Digits {
    text: [u8; 20],
}

impl Digits {
    fn unsigned(&mut self, number: u64) -> &[u8] {
        let used = self.fill(number);
        self.text.get(self.text.len() - used..).unwrap_or_default()
    }

    fn signed(&mut self, number: i64) -> &[u8] {
        let mut used = self.fill(number.unsigned_abs());
        if number < 0 {
            // 19 digits at most, so the first place is free.
            used += 1;
            let place = self.text.len() - used;
            if let Some(sign) = self.text.get_mut(place) {
                *sign = b'-';
            }
        }
        self.text.get(self.text.len() - used..).unwrap_or_default()
    }

    /// Writes from the end; the number of digits.
    fn fill(&mut self, mut number: u64) -> usize {
        let mut used = 0;
        for place in self.text.iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
            used += 1;
            if number == 0 {
                break;
            }
        }
        used
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
        /// Most bytes that are taken.
        limit: usize,
    },
}

/// Finds replies in a growing buffer. Single-line replies cost no allocation.
#[derive(Debug)]
pub struct ReplyDecoder {
    limit: usize,
    /// Length below which the buffer cannot hold the reply being waited for.
    needed: usize,
}

impl ReplyDecoder {
    /// A decoder that refuses replies longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, needed: 0 }
    }

    /// The first reply of the buffer and its length in bytes, which the caller then drops; nothing while it is incomplete.
    ///
    /// The buffer must start where the last one did until a reply came out of it.
    pub fn decode<'b>(
        &mut self,
        buffer: &'b [u8],
    ) -> Result<Option<(Reply<'b>, usize)>, RespError> {
        if buffer.len() < self.needed {
            return Ok(None);
        }
        let mut parser = Parser {
            rest: buffer,
            read: 0,
            limit: self.limit,
        };
        match parser.reply(MAX_DEPTH)? {
            Parsed::Reply(reply) => {
                self.needed = 0;
                Ok(Some((reply, parser.read)))
            }
            Parsed::Incomplete { .. } if buffer.len() >= self.limit => {
                Err(RespError::TooLong { limit: self.limit })
            }
            Parsed::Incomplete { needed } => {
                self.needed = needed;
                Ok(None)
            }
        }
    }
}

enum Parsed<'b> {
    Reply(Reply<'b>),
    /// The buffer must have at least this length.
    Incomplete {
        needed: usize,
    },
}

struct Parser<'b> {
    rest: &'b [u8],
    read: usize,
    limit: usize,
}

impl<'b> Parser<'b> {
    fn reply(&mut self, depth: u8) -> Result<Parsed<'b>, RespError> {
        let Some((mark, line)) = self.line()? else {
            return Ok(Parsed::Incomplete {
                needed: self.read + self.rest.len() + 1,
            });
        };
        Ok(Parsed::Reply(match mark {
            b'+' => Reply::Status(line),
            b'-' => Reply::Error(line),
            b':' => Reply::Integer(integer(line)?),
            b'$' => match self.length(line)? {
                None => Reply::Bulk(None),
                Some(length) => match self.bulk(length)? {
                    None => {
                        return Ok(Parsed::Incomplete {
                            needed: self.read.saturating_add(length + 2),
                        });
                    }
                    bytes => Reply::Bulk(bytes),
                },
            },
            b'*' => return self.array(line, depth),
            _ => return Err(RespError::Malformed("a reply starts with an unknown mark")),
        }))
    }

    fn array(&mut self, line: &[u8], depth: u8) -> Result<Parsed<'b>, RespError> {
        let Some(length) = self.length(line)? else {
            return Ok(Parsed::Reply(Reply::Array(None)));
        };
        let depth = depth
            .checked_sub(1)
            .ok_or(RespError::Malformed("a reply is nested too deep"))?;
        let mut replies = Vec::new();
        for _ in 0..length {
            match self.reply(depth)? {
                Parsed::Reply(reply) => replies.push(reply),
                incomplete @ Parsed::Incomplete { .. } => return Ok(incomplete),
            }
        }
        Ok(Parsed::Reply(Reply::Array(Some(replies))))
    }

    /// The next line: its mark, and what follows up to CR LF.
    fn line(&mut self) -> Result<Option<(u8, &'b [u8])>, RespError> {
        let Some(end) = self
            .rest
            .iter()
            .take(MAX_LINE)
            .position(|byte| *byte == b'\n')
        else {
            let too_long = self.rest.len() >= MAX_LINE;
            return if too_long {
                Err(RespError::Malformed("a line has no end"))
            } else {
                Ok(None)
            };
        };
        match self.advance(end + 1) {
            Some([mark, line @ .., b'\r', b'\n']) => Ok(Some((*mark, line))),
            _ => Err(RespError::Malformed("a line does not end with CR LF")),
        }
    }

    fn bulk(&mut self, length: usize) -> Result<Option<&'b [u8]>, RespError> {
        match self.rest.get(..length + 2) {
            None => Ok(None),
            Some([bytes @ .., b'\r', b'\n']) => {
                self.advance(length + 2);
                Ok(Some(bytes))
            }
            Some(_) => Err(RespError::Malformed(
                "a string does not end where it should",
            )),
        }
    }

    fn length(&self, line: &[u8]) -> Result<Option<usize>, RespError> {
        match integer(line)? {
            -1 => Ok(None),
            number => match usize::try_from(number) {
                Ok(length) if length <= self.limit => Ok(Some(length)),
                Ok(_) => Err(RespError::TooLong { limit: self.limit }),
                Err(_) => Err(RespError::Malformed("a length is negative")),
            },
        }
    }

    fn advance(&mut self, length: usize) -> Option<&'b [u8]> {
        let (passed, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        self.read += length;
        Some(passed)
    }
}

fn integer(line: &[u8]) -> Result<i64, RespError> {
    let text = std::str::from_utf8(line).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or(RespError::Malformed("a number is none"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Model {
        Status(String),
        Error(String),
        Integer(i64),
        Bulk(Option<Vec<u8>>),
        Array(Option<Vec<Model>>),
    }

    fn model() -> impl Strategy<Value = Model> {
        let leaf = prop_oneof![
            "[ -~]{0,20}".prop_map(Model::Status),
            "[ -~]{0,20}".prop_map(Model::Error),
            any::<i64>().prop_map(Model::Integer),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..300)).prop_map(Model::Bulk),
        ];
        leaf.prop_recursive(3, 30, 6, |inner| {
            prop::option::of(prop::collection::vec(inner, 0..6)).prop_map(Model::Array)
        })
    }

    fn encode(model: &Model, out: &mut Vec<u8>) {
        match model {
            Model::Status(text) => out.extend(format!("+{text}\r\n").bytes()),
            Model::Error(text) => out.extend(format!("-{text}\r\n").bytes()),
            Model::Integer(number) => out.extend(format!(":{number}\r\n").bytes()),
            Model::Bulk(None) => out.extend(b"$-1\r\n"),
            Model::Bulk(Some(bytes)) => {
                out.extend(format!("${}\r\n", bytes.len()).bytes());
                out.extend(bytes);
                out.extend(b"\r\n");
            }
            Model::Array(None) => out.extend(b"*-1\r\n"),
            Model::Array(Some(models)) => {
                out.extend(format!("*{}\r\n", models.len()).bytes());
                for model in models {
                    encode(model, out);
                }
            }
        }
    }

    fn reply(model: &Model) -> Reply<'_> {
        match model {
            Model::Status(text) => Reply::Status(text.as_bytes()),
            Model::Error(text) => Reply::Error(text.as_bytes()),
            Model::Integer(number) => Reply::Integer(*number),
            Model::Bulk(bytes) => Reply::Bulk(bytes.as_deref()),
            Model::Array(models) => Reply::Array(
                models
                    .as_ref()
                    .map(|models| models.iter().map(reply).collect()),
            ),
        }
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = BytesMut::new();
        CommandWriter::new(&mut out, 5)
            .arg(b"RESTORE")
            .arg(b"")
            .integer(i64::MIN)
            .integer(0)
            .written(3, |out| out.put_slice(b"a\r\n"));
        CommandWriter::write(&mut out, &[b"PING"]);
        let expected: &[u8] =
            b"*5\r\n$7\r\nRESTORE\r\n$0\r\n\r\n$20\r\n-9223372036854775808\r\n$1\r\n0\r\n$3\r\na\r\n\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let decode = |bytes: &[u8]| {
            ReplyDecoder::new(1000)
                .decode(bytes)
                .map(|found| found.is_some())
        };
        assert_eq!(decode(b"+OK\r"), Ok(false));
        assert!(matches!(decode(b"hello\r\n"), Err(RespError::Malformed(_))));
        assert!(matches!(decode(b"+OK\n"), Err(RespError::Malformed(_))));
        assert!(matches!(decode(b":x\r\n"), Err(RespError::Malformed(_))));
        assert!(matches!(decode(b"$-2\r\n"), Err(RespError::Malformed(_))));
        assert!(matches!(decode(b"$1\r\nabc"), Err(RespError::Malformed(_))));
        assert_eq!(
            decode(b"$1001\r\n"),
            Err(RespError::TooLong { limit: 1000 })
        );
        assert_eq!(
            decode(&[b"*100\r\n".as_slice(), &b":1\r\n".repeat(99), &[b'+'; 700]].concat()),
            Err(RespError::TooLong { limit: 1000 })
        );
        assert!(matches!(
            decode(&b"*1\r\n".repeat(20)),
            Err(RespError::Malformed(_))
        ));
    }

    proptest! {
            #[test]
            fn numbers_are_written_in_decimal(number in any::<i64>(), unsigned in any::<u64>()) {
                let mut digits = Digits::default();
                prop_assert_eq!(digits.signed(number).to_vec(), number.to_string().into_bytes());
                prop_assert_eq!(digits.unsigned(unsigned).to_vec(), unsigned.to_string().into_bytes());
            }

            #[test]
            fn replies_come_out_intact_however_they_are_cut(
                models in prop::collection::vec(model(), 1..8),
                sizes in prop::collection::vec(1usize..60, 1..20),
            ) {
                let mut stream = Vec::new();
                for model in &models {
     encode(model, &mut stream);
    }
                let mut expected = models.iter();
                let mut decoder = ReplyDecoder::new(1 << 20);
                let mut buffer = Vec::new();
                let mut sizes = sizes.iter().cycle();
                let mut rest = stream.as_slice();
                while !rest.is_empty() {
                    let (piece, more) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                    rest = more;
                    buffer.extend(piece);
                    while let Some((found, length)) = decoder.decode(&buffer).unwrap() {
                        prop_assert_eq!(found, reply(expected.next().unwrap()));
                        buffer.drain(..length);
                    }
                }
                prop_assert!(expected.next().is_none());
                prop_assert!(buffer.is_empty());
            }

            #[test]
            fn noise_never_panics(noise in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"+-:$*0123456789\r\n".to_vec())], 0..200)) {
                let _ = ReplyDecoder::new(100).decode(&noise);
            }
        }
}
