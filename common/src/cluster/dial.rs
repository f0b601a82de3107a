//! The only place that opens a connection to a node: connects, encrypts, logs in, and proves which node answers.

use super::{
    endpoint::{Endpoint, ExpectedIdentity, Login, NodeCredentials},
    error::NodeError,
    resp::{CommandWriter, Reply, ReplyDecoder},
    topology::NodeId,
    transport::{TlsAccess, Transport},
};
use bytes::BytesMut;
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret;
use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Idle time after which the kernel asks a peer whether it still exists. A peer whose machine is gone is given up after
/// this and [`KEEPALIVE_PROBES`] times [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// An id has 40 digits; error texts have at most some hundred bytes.
const LONGEST_REPLY: usize = 16 * 1024;

/// An open connection to a node: logged in, and proven to lead to the expected node.
#[derive(Debug)]
pub struct NodeStream(Socket);

#[derive(Debug)]
enum Socket {
    Plain(TcpStream),
    // Boxed: the other one is far smaller.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens a connection. The endpoint's timeout bounds connecting, logging in and the proof of identity together.
pub async fn dial(endpoint: &Endpoint) -> Result<NodeStream, NodeError> {
    let address = endpoint.address();
    let deadline = Instant::now() + endpoint.timeout();
    let late = |step| NodeError::ConnectTimeout {
        address,
        step,
        after: endpoint.timeout(),
    };
    let socket = timeout_at(deadline, connect(address))
        .await
        .map_err(|_| late("accept the connection"))?
        .map_err(|source| NodeError::Connect { address, source })?;
    let socket = match endpoint.transport() {
        Transport::Plain => Socket::Plain(socket),
        Transport::Tls(access) => timeout_at(deadline, encrypt(socket, address, access))
            .await
            .map_err(|_| late("complete the TLS handshake"))??,
    };
    let mut line = Greeting {
        socket: NodeStream(socket),
        address,
        received: BytesMut::new(),
        decoder: ReplyDecoder::new(LONGEST_REPLY),
    };
    timeout_at(deadline, line.enter(endpoint.login()))
        .await
        .map_err(|_| late("answer AUTH"))??;
    if *endpoint.expected() != ExpectedIdentity::Any {
        let found = timeout_at(deadline, line.identity())
            .await
            .map_err(|_| late("answer CLUSTER MYID"))??;
        if !endpoint.expected().accepts(found) {
            return Err(NodeError::WrongNode {
                address,
                expected: endpoint.expected().clone(),
                found,
            });
        }
    }
    Ok(line.socket)
}

async fn encrypt(
    socket: TcpStream,
    address: SocketAddr,
    access: &TlsAccess,
) -> Result<Socket, NodeError> {
    let connector = TlsConnector::from(access.config());
    let name = ServerName::from(address.ip());
    match connector.connect(name, socket).await {
        Ok(encrypted) => Ok(Socket::Tls(Box::new(encrypted))),
        // What TLS itself refuses has this kind.
        Err(source) if source.kind() == io::ErrorKind::InvalidData => {
            Err(NodeError::NotEncrypted { address, source })
        }
        Err(source) => Err(NodeError::Connect { address, source }),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    // Commands are small and wait for their answers: Nagle's algorithm would hold each back for 40 ms.
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

/// The first words on a new connection.
struct Greeting {
    socket: NodeStream,
    address: SocketAddr,
    received: BytesMut,
    decoder: ReplyDecoder,
}

impl Greeting {
    /// A server that does not know the user, or its password, leaves the connection as it was: that of the user `default`.
    async fn enter(&mut self, login: &Login) -> Result<(), NodeError> {
        match login {
            Login::None => Ok(()),
            Login::Required(credentials) => self.log_in(credentials).await,
            Login::Optional(credentials) => match self.log_in(credentials).await {
                Err(NodeError::Unauthenticated { code, .. }) if code == "WRONGPASS" => Ok(()),
                entered => entered,
            },
        }
    }

    /// Names the user always: a server that asks for no password accepts any of the user `default`, so a password can be
    /// given to the clients before it is given to the servers.
    async fn log_in(&mut self, credentials: &NodeCredentials) -> Result<(), NodeError> {
        let NodeCredentials { username, password } = credentials;
        let password = password.expose_secret().as_bytes();
        let answer = self
            .ask(&[b"AUTH", username.as_bytes(), password], "AUTH")
            .await?;
        match answer {
            ShortReply::Text(_) => Ok(()),
            // The text is left out: a server that does not know AUTH repeats its arguments.
            ShortReply::Error { code, .. } => Err(NodeError::Unauthenticated {
                address: self.address,
                username: Some(username.clone()),
                code,
            }),
        }
    }

    async fn identity(&mut self) -> Result<NodeId, NodeError> {
        const QUESTION: &str = "CLUSTER MYID";
        match self.ask(&[b"CLUSTER", b"MYID"], QUESTION).await? {
            ShortReply::Text(id) => id.parse().map_err(|source| NodeError::Topology {
                address: self.address,
                source,
            }),
            ShortReply::Error { code, detail } => {
                let source = redis::make_extension_error(code, Some(detail));
                Err(NodeError::of(self.address, QUESTION, source))
            }
        }
    }

    async fn ask(
        &mut self,
        parts: &[&[u8]],
        command: &'static str,
    ) -> Result<ShortReply, NodeError> {
        let address = self.address;
        // With TLS 1.3 a server says at its first answer that it refuses the certificate of the client.
        let lost = |source: io::Error| {
            if source.kind() == io::ErrorKind::InvalidData {
                NodeError::NotEncrypted { address, source }
            } else {
                NodeError::Connect { address, source }
            }
        };
        let mut question = BytesMut::new();
        CommandWriter::write(&mut question, parts);
        self.socket.write_all(&question).await.map_err(lost)?;
        self.received.clear();
        loop {
            let reply = self.decoder.decode(&self.received);
            let reply = reply.map_err(|error| NodeError::NotRedis {
                address,
                command,
                source: error,
            })?;
            if let Some((reply, _)) = reply {
                return Ok(ShortReply::of(&reply));
            }
            if self
                .socket
                .read_buf(&mut self.received)
                .await
                .map_err(lost)?
                == 0
            {
                return Err(lost(io::ErrorKind::ConnectionReset.into()));
            }
        }
    }
}

/// A reply that is one line or one string.
enum ShortReply {
    Text(String),
    Error { code: String, detail: String },
}

impl ShortReply {
    fn of(reply: &Reply<'_>) -> Self {
        match reply {
            Reply::Status(text) | Reply::Bulk(Some(text)) => {
                Self::Text(String::from_utf8_lossy(text).into_owned())
            }
            Reply::Error(text) => {
                let text = String::from_utf8_lossy(text);
                let (code, detail) = text.split_once(' ').unwrap_or((&text, ""));
                Self::Error {
                    code: code.to_owned(),
                    detail: detail.to_owned(),
                }
            }
            other @ (Reply::Bulk(None) | Reply::Integer(_) | Reply::Array(_)) => {
                Self::Text(format!("{other:?}"))
            }
        }
    }
}

impl AsyncRead for NodeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Socket::Tls(socket) => {
                // What was written may still be here, encrypted: the reader of the answer sends it, as with a plain socket.
                if let Poll::Ready(Err(error)) = Pin::new(&mut *socket).poll_flush(context) {
                    return Poll::Ready(Err(error));
                }
                Pin::new(socket).poll_read(context, buffer)
            }
        }
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Tls(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_flush(context),
            Socket::Tls(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tls(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;
    use tokio::net::TcpListener;

    const PASSWORD: &str = "hunter2";

    /// A server that answers the first command with this text and then closes; its address.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut question = [0; 1024];
            let _ = socket.read(&mut question).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        });
        address
    }

    fn endpoint(address: SocketAddr) -> Endpoint {
        Endpoint::new(address, Duration::from_secs(5))
    }

    fn id(digit: char) -> NodeId {
        digit.to_string().repeat(40).parse().unwrap()
    }

    #[tokio::test]
    async fn another_node_is_refused_and_both_ids_are_named() {
        let answer = "$40\r\nbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n";
        let expected = endpoint(server(answer).await).expecting(id('b'));
        dial(&expected).await.unwrap();
        let wrong = endpoint(server(answer).await).expecting(id('a'));
        let error = dial(&wrong).await.unwrap_err();
        assert!(matches!(error, NodeError::WrongNode { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&id('a').to_string()), "{text}");
        assert!(text.contains(&id('b').to_string()), "{text}");
    }

    #[tokio::test]
    async fn a_server_that_repeats_its_arguments_reveals_no_password() {
        let answer =
            "-ERR unknown command 'AUTH', with args beginning with: 'default' 'hunter2'\r\n";
        let credentials =
            NodeCredentials::new(NodeCredentials::DEFAULT_USER, SecretString::from(PASSWORD));
        let endpoint = endpoint(server(answer).await).with_credentials(credentials);
        let error = dial(&endpoint).await.unwrap_err();
        assert!(
            matches!(error, NodeError::Unauthenticated { .. }),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error}");
    }

    #[tokio::test]
    async fn a_node_that_loads_its_data_is_distinguished() {
        let answer = "-LOADING Redis is loading the dataset in memory\r\n";
        let endpoint = endpoint(server(answer).await).expecting(id('a'));
        let error = dial(&endpoint).await.unwrap_err();
        assert!(matches!(error, NodeError::Loading { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::new(address, Duration::from_millis(50)).expecting(id('a'));
        let error = dial(&endpoint).await.unwrap_err();
        assert!(
            matches!(
                error,
                NodeError::ConnectTimeout {
                    step: "answer CLUSTER MYID",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[tokio::test]
    async fn what_is_not_redis_is_refused() {
        let endpoint = endpoint(server("HTTP/1.1 400 Bad Request\r\n").await).expecting(id('a'));
        let error = dial(&endpoint).await.unwrap_err();
        assert!(matches!(error, NodeError::NotRedis { .. }), "{error}");
    }
}
