//! A whole controller process: probes, leases, SIGTERM, memory.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tests::{
    kubernetes::api_server,
    wait::{eventually, within},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

/// The shortest that is allowed.
const WATCH: Duration = Duration::from_secs(10);

struct Process {
    child: Child,
    address: String,
    log: tokio::task::JoinHandle<String>,
}

/// Starts a controller that does nothing and waits until it says where it listens.
async fn start(identity: &str, namespace: &str, kubeconfig: &Path) -> Result<Process> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_idle-controller"))
        .env("KUBECONFIG", kubeconfig)
        .env("POD_NAME", identity)
        .env("POD_NAMESPACE", namespace)
        .env("WATCH_NAMESPACE", namespace)
        .env("LISTEN_ADDRESS", "127.0.0.1:0")
        .env("LEASE_DURATION", "3s")
        .env("WATCH_TIMEOUT_SECONDS", WATCH.as_secs().to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    let mut head = String::new();
    let address = loop {
        let line = lines.next_line().await?.context(head.clone())?;
        let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(address) = value["address"].as_str() {
            break address.to_string();
        }
        head += &line;
    };
    let log = tokio::spawn(async move {
        let mut log = head;
        while let Ok(Some(line)) = lines.next_line().await {
            log = log + "\n" + &line;
        }
        log
    });
    Ok(Process {
        child,
        address,
        log,
    })
}

impl Process {
    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let code = answer.split(' ').nth(1).context("no status")?.parse()?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((code, body.to_string()))
    }

    async fn ready(&self) -> Result<()> {
        eventually("the process is ready", async || {
            Ok((self.get("/readyz").await?.0 == 200).then_some(()))
        })
        .await
    }

    async fn leads(&self) -> Result<()> {
        eventually("the process leads", async || {
            let metrics = self.get("/metrics").await?.1;
            Ok(metrics.contains("redis_operator_leading 1").then_some(()))
        })
        .await
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().context("it has ended")?.to_string();
        let status = std::process::Command::new("kill")
            .args([signal, &id])
            .status()?;
        ensure!(status.success(), "kill {signal} {id}: {status}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_serves_probes_and_hands_back_at_sigterm() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("run").await?;
    let mut first = start("run-controller-a", &namespace, &server.kubeconfig).await?;
    first.leads().await?;
    first.ready().await?;
    assert_eq!(first.get("/livez").await?.0, 200);
    assert_eq!(first.get("/else").await?.0, 404);
    let mut second = start("run-controller-b", &namespace, &server.kubeconfig).await?;
    // A standby is ready too: its caches are complete.
    second.ready().await?;

    let metrics = second.get("/metrics").await?.1;
    let resident = metrics
        .lines()
        .find_map(|line| line.strip_prefix("process_resident_memory_bytes "))
        .context("no memory")?
        .parse::<u64>()?;
    println!("idle: {} KiB resident", resident / 1024);

    let leases: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    eventually("the member lease is there", async || {
        leases.get_opt("run-controller-a").await.map_err(Into::into)
    })
    .await?;
    first.signal("-TERM")?;
    let status = tokio::time::timeout(Duration::from_secs(10), first.child.wait()).await??;
    assert!(status.success(), "{status}: {}", first.log.await?);
    assert!(leases.get_opt("run-controller-a").await?.is_none());
    second.leads().await?;

    second.signal("-INT")?;
    let status = tokio::time::timeout(Duration::from_secs(10), second.child.wait()).await??;
    assert!(status.success(), "{status}: {}", second.log.await?);
    let lease = leases.get("run-controller").await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    assert_eq!(holder.unwrap_or_default(), "");
    Ok(())
}

/// A way to the API server on which nothing moves any more while `SILENT` is set: connections stay open, and new ones are accepted.
async fn silent_way(to: String) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(to).await?;
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::try_join!(pass(from_client, to_server), pass(from_server, to_client))
            });
        }
    });
    Ok(port)
}

static SILENT: AtomicBool = AtomicBool::new(false);

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if SILENT.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

/// Neither an answer nor an end: without a bound of its own a watch would wait for ever, and what it knows would be taken for the present.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_api_server_fails_the_watches() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("silent").await?;
    let text = fs::read_to_string(&server.kubeconfig)?;
    let (_, rest) = text
        .split_once("https://")
        .context("no server in the kubeconfig")?;
    let part_of_it = |letter: char| letter.is_ascii_alphanumeric() || ".:".contains(letter);
    let address: String = rest
        .chars()
        .take_while(|letter| part_of_it(*letter))
        .collect();
    let host = address.rsplit_once(':').context("no port")?.0;
    let port = silent_way(address.clone()).await?;
    let kubeconfig =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("silent-{}", std::process::id()));
    fs::write(
        &kubeconfig,
        text.replace(&address, &format!("{host}:{port}")),
    )?;
    let process = start("run-controller-silent", &namespace, &kubeconfig).await?;
    process.ready().await?;
    let failures = async || -> Result<u64> {
        let metrics = process.get("/metrics").await?.1;
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("redis_operator_watch_errors_total"));
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
    };
    // Watches that end in time and start again are no failures.
    tokio::time::sleep(WATCH + Duration::from_secs(4)).await;
    ensure!(failures().await? == 0, "a quiet watch has failed");
    SILENT.store(true, Ordering::Relaxed);
    let silent = std::time::Instant::now();
    within(WATCH * 3, "the watch has failed", async || {
        Ok(failures().await? > 0)
    })
    .await?;
    ensure!(
        silent.elapsed() < WATCH * 2,
        "only after {:?}",
        silent.elapsed()
    );
    fs::remove_file(&kubeconfig)?;
    Ok(())
}
