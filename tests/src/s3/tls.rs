//! A certificate authority of one test, and connections under a certificate that it has signed.

use anyhow::{Context, ensure};
use axum::serve::Listener;
use std::{fs, io, net::SocketAddr, path::Path, process::Command, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// An authority and a server's certificate for 127.0.0.1 and localhost, made by openssl.
#[derive(Clone)]
pub struct Authority {
    pem: Vec<u8>,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes keys and certificates in this directory.
    pub fn create(directory: &Path) -> anyhow::Result<Self> {
        let run = |arguments: &str| {
            let output = Command::new("openssl")
                .args(arguments.split(' '))
                .current_dir(directory)
                .output()
                .context("cannot run openssl")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "openssl {arguments}: {said}");
            Ok(())
        };
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
        fs::write(directory.join("names"), names)?;
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        run(&format!(
            "req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=test-authority"
        ))?;
        run(&format!(
            "req {key} -keyout tls.key -out tls.csr -subj /CN=s3"
        ))?;
        run(
            "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out tls.crt",
        )?;
        let certificate = CertificateDer::from_pem_file(directory.join("tls.crt"))?;
        let key = PrivateKeyDer::from_pem_file(directory.join("tls.key"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Ok(Self {
            pem: fs::read(directory.join("ca.crt"))?,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// The authority's certificate.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// Connections of this listener, each after its handshake.
    pub(super) fn listen(&self, tcp: TcpListener) -> TlsListener {
        TlsListener {
            tcp,
            acceptor: self.acceptor.clone(),
        }
    }
}

/// Accepts one connection at a time: a client that refuses the certificate ends its own only.
pub(super) struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            let handshake = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream));
            match handshake.await {
                Ok(Ok(stream)) => return (stream, address),
                Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                Err(_) => tracing::debug!("a handshake took too long"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
