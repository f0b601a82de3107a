//! The replication stream against a server that follows a script: every framing, every cut, every refusal.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a test may panic

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::BytesMut;
use common::cluster::endpoint::Endpoint;
use common::cluster::replication::{
    Fork, Handshake, ReplicationError, ReplicationOptions, ReplicationStream,
};
use common::cluster::resp::{Reply, ReplyDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const MARK: &[u8; 40] = b"0123456789abcdef0123456789abcdef01234567";
const FULL_RESYNC: &str = "+FULLRESYNC aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd 42\r\n";

/// A server for one connection.
struct Script {
    address: SocketAddr,
    run: JoinHandle<Result<Vec<Vec<String>>>>,
}

impl Script {
    /// Answers each REPLCONF with the next of `answers` (then `+OK`), and PSYNC with the pieces, each sent alone; then
    /// closes, unless it is to stay silent. The result is what it received.
    async fn start(
        answers: &'static [&'static str],
        pieces: Vec<Vec<u8>>,
        stay: bool,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let run = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let commands = introductions(&mut socket, answers).await?;
            for piece in pieces {
                socket.write_all(&piece).await?;
                tokio::task::yield_now().await;
            }
            if stay {
                let sent = socket.read(&mut [0; 100]).await?;
                anyhow::ensure!(sent == 0, "something was sent after PSYNC");
            }
            Ok(commands)
        });
        Ok(Self { address, run })
    }

    async fn received(self) -> Result<Vec<Vec<String>>> {
        self.run.await?
    }
}

/// Reads commands up to PSYNC.
async fn introductions(socket: &mut TcpStream, answers: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut answers = answers.iter();
    let (mut buffer, mut decoder) = (BytesMut::new(), ReplyDecoder::new(4096));
    let mut commands = Vec::new();
    loop {
        while let Some((command, length)) = decoder.decode(&buffer)? {
            let Reply::Array(Some(words)) = command else {
                anyhow::bail!("no command")
            };
            let words: Vec<String> = words
                .iter()
                .map(|word| {
                    let Reply::Bulk(Some(word)) = word else {
                        return format!("{word:?}");
                    };
                    String::from_utf8_lossy(word).into_owned()
                })
                .collect();
            let _ = buffer.split_to(length);
            let last = words.first().is_some_and(|name| name == "PSYNC");
            commands.push(words);
            if last {
                return Ok(commands);
            }
            socket
                .write_all(answers.next().unwrap_or(&"+OK\r\n").as_bytes())
                .await?;
        }
        anyhow::ensure!(
            socket.read_buf(&mut buffer).await? > 0,
            "closed before PSYNC"
        );
    }
}

fn options() -> ReplicationOptions {
    ReplicationOptions {
        idle_timeout: Duration::from_secs(10),
        ..ReplicationOptions::default()
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(address, Duration::from_secs(10))
}

async fn open(
    address: SocketAddr,
    options: ReplicationOptions,
) -> Result<ReplicationStream, ReplicationError> {
    let handshake = Handshake::start(&endpoint(address), options).await?;
    handshake.full_resync().await
}

/// Everything up to the end, read into a buffer of this capacity.
async fn read_all(
    stream: &mut ReplicationStream,
    capacity: usize,
) -> Result<Vec<u8>, ReplicationError> {
    let mut all = Vec::new();
    let mut piece = BytesMut::with_capacity(capacity);
    while stream.read(&mut piece).await? > 0 {
        assert!(
            piece.len() <= capacity.max(64 * 1024 + 64),
            "no more than the capacity is filled"
        );
        all.extend_from_slice(&piece);
        piece.clear();
    }
    assert_eq!(stream.read(&mut piece).await?, 0, "the end stays the end");
    assert_eq!(stream.received(), all.len() as u64);
    Ok(all)
}

/// What comes of a script that sends these pieces after PSYNC.
async fn outcome(pieces: Vec<Vec<u8>>) -> Result<Vec<u8>, ReplicationError> {
    let script = Script::start(&[], pieces, false).await.unwrap();
    let mut stream = open(script.address, options()).await?;
    read_all(&mut stream, 1000).await
}

fn payload() -> Vec<u8> {
    // Beginnings of the mark all over, of every length.
    (0..200)
        .flat_map(|n| [&MARK[..n % 40], b"payload"].concat())
        .collect()
}

fn marked(payload: &[u8]) -> Vec<u8> {
    [
        FULL_RESYNC.as_bytes(),
        b"$EOF:",
        MARK,
        b"\r\n",
        payload,
        MARK,
    ]
    .concat()
}

#[tokio::test]
async fn introductions_come_one_by_one_and_may_be_refused() -> Result<()> {
    let answers = &[
        "+OK\r\n",
        "+OK\r\n",
        "-ERR no such capability\r\n",
        "-ERR Unrecognized REPLCONF option\r\n",
    ];
    let script = Script::start(answers, vec![marked(b"rdb")], true).await?;
    let options = ReplicationOptions {
        listening_port: Some(4711),
        ip_address: Some([127, 0, 0, 9].into()),
        server_version: Some("9.0.1".into()),
        ..options()
    };
    let mut stream = open(script.address, options).await?;
    assert_eq!(read_all(&mut stream, 100).await?, b"rdb");
    assert_eq!(
        *stream.fork(),
        Fork {
            replication_id: "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd".into(),
            offset: 42
        }
    );
    drop(stream);
    let received: Vec<String> = script
        .received()
        .await?
        .iter()
        .map(|words| words.join(" "))
        .collect();
    let expected = [
        "REPLCONF listening-port 4711",
        "REPLCONF ip-address 127.0.0.9",
        "REPLCONF capa eof capa psync2",
        "REPLCONF rdb-only 1",
        "REPLCONF version 9.0.1",
        "PSYNC ? -1",
    ];
    assert_eq!(received, expected);
    Ok(())
}

#[tokio::test]
async fn the_mark_may_be_split_anywhere() -> Result<()> {
    let stream = marked(&payload());
    for before_end in 0..=60 {
        let (first, second) = stream.split_at(stream.len() - before_end);
        assert_eq!(
            outcome(vec![first.to_vec(), second.to_vec()]).await?,
            payload(),
            "cut {before_end} before the end"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_end_mark_may_come_byte_by_byte() -> Result<()> {
    for cut in 1..40 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (go_on, wait) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await?;
            introductions(&mut socket, &[]).await?;
            let head = [
                FULL_RESYNC.as_bytes(),
                b"$EOF:",
                MARK,
                b"\r\nsome",
                &MARK[..cut],
            ]
            .concat();
            socket.write_all(&head).await?;
            wait.await?;
            socket.write_all(&MARK[cut..]).await?;
            anyhow::Ok(socket)
        });
        let mut stream = open(address, options()).await?;
        let mut piece = BytesMut::with_capacity(1000);
        while piece.len() < 4 {
            stream.read(&mut piece).await?;
        }
        assert_eq!(piece, "some", "what may be the mark is kept back");
        go_on.send(()).ok().context("the script ended")?;
        assert_eq!(stream.read(&mut piece).await?, 0);
        assert_eq!(piece, "some");
        server.await??;
    }
    Ok(())
}

#[tokio::test]
async fn keep_alives_come_before_every_line_and_after_the_mark() -> Result<()> {
    let payload = payload();
    let pieces = vec![
        b"\n".to_vec(),
        b"\n\n".to_vec(),
        FULL_RESYNC.into(),
        b"\n".to_vec(),
        [b"\n$EOF:", MARK.as_slice(), b"\r\n"].concat(),
        payload.clone(),
        MARK.to_vec(),
        b"\n\n\n".to_vec(),
    ];
    assert_eq!(outcome(pieces.clone()).await?, payload);
    assert_eq!(outcome(vec![pieces.concat()]).await?, payload);
    assert_eq!(
        outcome(pieces.concat().iter().map(|byte| vec![*byte]).collect()).await?,
        payload
    );
    Ok(())
}

#[tokio::test]
async fn an_announced_length_is_kept() -> Result<()> {
    let payload = payload();
    let head = format!("{FULL_RESYNC}\n\n${}\r\n", payload.len()).into_bytes();
    let whole = [head.as_slice(), &payload, b"*1\r\n$4\r\nPING\r\n"].concat();
    assert_eq!(outcome(vec![whole.clone()]).await?, payload);
    assert_eq!(
        outcome(whole.chunks(7).map(<[u8]>::to_vec).collect()).await?,
        payload
    );
    assert_eq!(
        outcome(vec![format!("{FULL_RESYNC}$0\r\n").into_bytes()]).await?,
        b""
    );
    assert_eq!(outcome(vec![marked(b"")]).await?, b"");
    Ok(())
}

#[tokio::test]
async fn a_buffer_of_any_capacity_will_do() -> Result<()> {
    let payload = payload();
    for capacity in [0, 1, 63, 64, 65, 100, 4096] {
        let script = Script::start(&[], vec![marked(&payload)], false).await?;
        let mut stream = open(script.address, options()).await?;
        assert_eq!(
            read_all(&mut stream, capacity).await?,
            payload,
            "capacity {capacity}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_early_close_is_an_error_wherever_it_comes() -> Result<()> {
    let mark = marked(b"payload");
    let length = format!("{FULL_RESYNC}$7\r\npayload").into_bytes();
    for whole in [mark, length] {
        for cut in 0..whole.len() {
            let error = outcome(vec![whole[..cut].to_vec()])
                .await
                .err()
                .context(format!("no error at {cut}"))?;
            assert!(
                matches!(
                    error,
                    ReplicationError::Closed { .. } | ReplicationError::Io { .. }
                ),
                "{cut}: {error}"
            );
        }
        assert_eq!(outcome(vec![whole]).await?, b"payload");
    }
    Ok(())
}

#[tokio::test]
async fn refusals_are_distinguished() {
    let refusal = async |answer: &str| outcome(vec![answer.as_bytes().to_vec()]).await.unwrap_err();
    let link = refusal("-NOMASTERLINK Can't SYNC while not connected with my master\r\n").await;
    assert!(
        matches!(link, ReplicationError::NoPrimaryLink { .. }),
        "{link}"
    );
    let loading = refusal("\n\n-LOADING Redis is loading the dataset in memory\r\n").await;
    assert!(
        matches!(loading, ReplicationError::Loading { .. }),
        "{loading}"
    );
    for answer in [
        "-NOAUTH Authentication required.\r\n",
        "-NOPERM this user has no permissions\r\n",
    ] {
        let forbidden = refusal(answer).await;
        assert!(
            matches!(forbidden, ReplicationError::Forbidden { .. }),
            "{forbidden}"
        );
    }
    let failed = refusal(&format!(
        "{FULL_RESYNC}-ERR BGSAVE failed, replication can't continue\r\n"
    ))
    .await;
    assert!(
        matches!(&failed, ReplicationError::Refused { message, .. } if message.contains("BGSAVE")),
        "{failed}"
    );
}

#[tokio::test]
async fn what_is_not_the_protocol_is_refused() {
    let long = "x".repeat(10_000);
    for answer in [
        "+CONTINUE aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd\r\n",
        "+FULLRESYNC short 1\r\n",
        "+FULLRESYNC aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd x\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        &long,
        &format!("{FULL_RESYNC}$EOF:short\r\n"),
        &format!("{FULL_RESYNC}$-5\r\n"),
        &format!("{FULL_RESYNC}{long}"),
    ] {
        let error = outcome(vec![answer.as_bytes().to_vec()]).await.unwrap_err();
        assert!(
            matches!(error, ReplicationError::Unexpected { .. }),
            "{answer:.60}: {error}"
        );
    }
}

#[tokio::test]
async fn a_server_without_an_answer_gets_nothing_and_times_out() -> Result<()> {
    let silent = ReplicationOptions {
        idle_timeout: Duration::from_millis(50),
        ..options()
    };
    for sent in [
        "",
        "\n",
        FULL_RESYNC,
        &String::from_utf8(marked(b"payload"))?[..130],
    ] {
        let script = Script::start(&[], vec![sent.as_bytes().to_vec()], true).await?;
        let open = async {
            let mut stream = Handshake::start(&endpoint(script.address), silent.clone())
                .await?
                .full_resync()
                .await?;
            read_all(&mut stream, 100).await
        };
        let error = open.await.unwrap_err();
        assert!(
            matches!(error, ReplicationError::Timeout { .. }),
            "{sent:?}: {error}"
        );
        script.received().await?;
    }
    Ok(())
}

#[tokio::test]
async fn reading_goes_on_after_it_was_cancelled() -> Result<()> {
    let payload = payload();
    let whole = marked(&payload);
    let script = Script::start(&[], whole.chunks(11).map(<[u8]>::to_vec).collect(), true).await?;
    let mut stream = open(script.address, options()).await?;
    let mut all = BytesMut::with_capacity(1 << 16);
    loop {
        // A deadline in the past: the read is polled once and dropped if it would wait.
        match tokio::time::timeout(Duration::ZERO, stream.read(&mut all)).await {
            Ok(Ok(0)) => break,
            Ok(result) => drop(result?),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert_eq!(all, payload);
    Ok(())
}
