//! A proxy in front of the API server that can be away, or refuse requests as an overloaded server does.

use crate::{
    kubernetes::{ApiServer, api_server, connect},
    noise::Noise,
};
use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use kube::{Client, Config};
use serde_json::json;
use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::runtime;

/// The largest request that is passed on.
const LARGEST: usize = 4 << 20;

/// Every third request is refused while this is on, in an order that no retry is in step with.
#[derive(Debug, Default)]
struct Overload {
    /// Requests since the start.
    requests: AtomicU64,
    /// Requests that were refused.
    refused: AtomicU64,
    /// Whether requests are refused.
    on: AtomicBool,
}

/// The proxy, in threads of its own.
pub struct ApiProxy {
    address: SocketAddr,
    overload: Arc<Overload>,
    /// None while the server is away.
    serving: Option<runtime::Runtime>,
}

impl ApiProxy {
    /// Starts at a free port of loopback.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut proxy = Self {
            address: listener.local_addr()?,
            overload: Arc::default(),
            serving: None,
        };
        proxy.serve(listener)?;
        Ok(proxy)
    }

    /// Where replicas connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and refuses new ones.
    pub fn leave(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.shutdown_background();
        }
    }

    /// Serves again, at the same address.
    pub fn come_back(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address)?;
        self.serve(listener)
    }

    /// Refuses a third of the requests from now on, with 429 or with 500.
    pub fn overload(&self) {
        self.overload.on.store(true, Ordering::Relaxed);
    }

    /// Passes every request on from now on; returns how many were refused.
    pub fn relieve(&self) -> u64 {
        self.overload.on.store(false, Ordering::Relaxed);
        self.overload.refused.load(Ordering::Relaxed)
    }

    fn serve(&mut self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        let threads = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let overload = Arc::clone(&self.overload);
        threads.spawn(async move {
            let served = async {
                let server = connect().await?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let router = Router::new()
                    .fallback(pass_on)
                    .with_state((server.client, overload));
                axum::serve(listener, router).await.context("serving")
            };
            if let Err(error) = served.await {
                println!("the proxy of the API server ended: {error:#}");
            }
        });
        self.serving = Some(threads);
        Ok(())
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The API server as it is seen through a proxy.
pub async fn through(proxy: SocketAddr) -> Result<ApiServer> {
    let direct = api_server().await?;
    let config = Config::new(format!("http://{proxy}").parse()?);
    Ok(direct.with_client(Client::try_from(config)?))
}

async fn pass_on(
    State((client, overload)): State<(Client, Arc<Overload>)>,
    request: Request,
) -> Response {
    let number = overload.requests.fetch_add(1, Ordering::Relaxed);
    let chance = Noise::new(number).word() % 6;
    if overload.on.load(Ordering::Relaxed) && chance < 2 {
        overload.refused.fetch_add(1, Ordering::Relaxed);
        return refuse(chance == 0);
    }
    match forward(&client, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

async fn forward(client: &Client, request: Request) -> Result<Response> {
    let (mut head, body) = request.into_parts();
    let body = to_bytes(body, LARGEST).await?;
    head.headers.remove("host");
    head.headers.remove("content-length");
    let request = axum::http::Request::from_parts(head, kube::client::Body::from(body));
    let (head, body) = client.send(request).await?.into_parts();
    Ok(Response::from_parts(head, Body::new(body)))
}

/// What an overloaded server answers.
fn refuse(for_now: bool) -> Response {
    let (status, reason) = if for_now {
        (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by the test", "reason": reason, "code": status.as_u16(),
    });
    let mut response = (status, body.to_string()).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    if status == StatusCode::TOO_MANY_REQUESTS {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
