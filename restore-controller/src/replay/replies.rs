//! Reads what RESTORE and ASKING answer: a status or an error, one line each. A run of "+OK" is taken in one step.

/// Replies at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum RestoreReply<'a> {
    /// So many times "+OK".
    Ok(usize),
    /// An error, without its dash.
    Error(&'a [u8]),
}

/// What is no reply to RESTORE.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A reply of another kind.
    #[error("a reply starts with byte {0:#04x} instead of + or -")]
    Kind(u8),
    /// A line without end.
    #[error("a reply line is longer than {LONGEST_LINE} bytes")]
    Endless,
    /// A status other than OK.
    #[error("the status of a reply is not OK")]
    Status,
}

const OK: &[u8] = b"+OK\r\n";
/// Error texts have at most some hundred bytes.
const LONGEST_LINE: usize = 16 * 1024;

/// The replies at the start of `buffer` and how many bytes they take; `None`: more bytes are needed.
pub fn next_reply(buffer: &[u8]) -> Result<Option<(RestoreReply<'_>, usize)>, ReplyError> {
    let count = buffer
        .chunks_exact(OK.len())
        .take_while(|line| *line == OK)
        .count();
    if count > 0 {
        return Ok(Some((RestoreReply::Ok(count), count * OK.len())));
    }
    let Some((kind, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    if !matches!(kind, b'+' | b'-') {
        return Err(ReplyError::Kind(*kind));
    }
    let end = rest
        .windows(2)
        .take(LONGEST_LINE)
        .position(|w| w == b"\r\n");
    let Some(line) = end.and_then(|end| rest.get(..end)) else {
        return if rest.len() > LONGEST_LINE {
            Err(ReplyError::Endless)
        } else {
            Ok(None)
        };
    };
    if *kind == b'+' {
        return Err(ReplyError::Status);
    }
    Ok(Some((RestoreReply::Error(line), line.len() + 3)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_of_ok_are_one_step() {
        assert_eq!(
            next_reply(b"+OK\r\n+OK\r\n-ERR x\r\n"),
            Ok(Some((RestoreReply::Ok(2), 10)))
        );
        assert_eq!(
            next_reply(b"-ERR x\r\n+OK\r\n"),
            Ok(Some((RestoreReply::Error(b"ERR x"), 8)))
        );
        assert_eq!(next_reply(b"+OK\r"), Ok(None));
        assert_eq!(next_reply(b"-ERR"), Ok(None));
        assert_eq!(next_reply(b""), Ok(None));
    }

    #[test]
    fn other_replies_are_no_replies_to_restore() {
        assert_eq!(next_reply(b":1\r\n"), Err(ReplyError::Kind(b':')));
        assert_eq!(next_reply(b"+QUEUED\r\n"), Err(ReplyError::Status));
        let endless = format!("-{}", "x".repeat(LONGEST_LINE + 2)).into_bytes();
        assert_eq!(next_reply(&endless), Err(ReplyError::Endless));
    }

    proptest! {
        /// The replies are the same however the stream is cut.
        #[test]
        fn cuts_do_not_matter(replies in prop::collection::vec(prop::option::of("[A-Z]{1,9} [a-z ]{0,30}"), 0..60), cut in 1_usize..50) {
            let wire: Vec<u8> = replies
                .iter()
                .flat_map(|reply| match reply {
                    None => b"+OK\r\n".to_vec(),
                    Some(error) => format!("-{error}\r\n").into_bytes(),
                })
                .collect();
            let mut buffer = Vec::new();
            let mut seen = Vec::new();
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                loop {
                    let length = match next_reply(&buffer).unwrap() {
                        None => break,
                        Some((RestoreReply::Ok(count), length)) => {
                            seen.extend(std::iter::repeat_n(None, count));
                            length
                        }
                        Some((RestoreReply::Error(text), length)) => {
                            seen.push(Some(String::from_utf8(text.to_vec()).unwrap()));
                            length
                        }
                    };
                    buffer.drain(..length);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(seen, replies);
        }
    }
}
