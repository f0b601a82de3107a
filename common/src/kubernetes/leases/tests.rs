//! Renewal against an API server that lets single requests hang, on connections of their own or on kept ones.

use super::{Leadership, Membership};
use crate::runtime::{CommonArguments, Program, Runtime, client, events::Events};
use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use clap::Parser;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const LEASE: Duration = Duration::from_secs(2);

/// Leases in memory. The next `hang` writes never get an answer.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    leases: HashMap<String, Value>,
    version: u64,
    hang: usize,
    hung: usize,
    renewed: u64,
    /// Connections that were opened.
    connections: u64,
}

impl Server {
    fn with<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    async fn write(&self, name: String, mut lease: Value) -> Response {
        let hangs = self.with(|kept| {
            let hangs = kept.hang > 0;
            if hangs {
                kept.hang -= 1;
                kept.hung += 1;
            }
            hangs
        });
        if hangs {
            std::future::pending::<()>().await;
        }
        self.with(|kept| {
            let known = kept
                .leases
                .get(&name)
                .map(|lease| lease["metadata"]["resourceVersion"].clone());
            if known.is_some_and(|known| known != lease["metadata"]["resourceVersion"]) {
                return failure(409, "Conflict");
            }
            kept.version += 1;
            kept.renewed += 1;
            lease["metadata"]["resourceVersion"] = json!(kept.version.to_string());
            kept.leases.insert(name, lease.clone());
            answer(200, &lease)
        })
    }
}

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": ""});
    answer(code, &status)
}

fn answer(code: u16, body: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    (code, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn serve(server: Server) -> String {
    let one = get(
        |State(server): State<Server>, Path(name): Path<String>| async move {
            let found = server.with(|kept| kept.leases.get(&name).cloned());
            found.map_or_else(|| failure(404, "NotFound"), |lease| answer(200, &lease))
        },
    )
    .put(
        |State(server): State<Server>, Path(name): Path<String>, lease: String| async move {
            server
                .write(name, serde_json::from_str(&lease).unwrap())
                .await
        },
    );
    let all = post(|State(server): State<Server>, lease: String| async move {
        let lease: Value = serde_json::from_str(&lease).unwrap();
        let name = lease["metadata"]["name"].as_str().unwrap().to_string();
        server.write(name, lease).await
    });
    let leases = "/apis/coordination.k8s.io/v1/namespaces/system/leases";
    let router = Router::new()
        .route(leases, all)
        .route(&format!("{leases}/{{name}}"), one)
        .with_state(server.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = listener.tap_io(move |_| server.with(|kept| kept.connections += 1));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    common: CommonArguments,
}

async fn runtime(server: &Server) -> Runtime {
    // Another test may have installed it.
    let _ = client::install_crypto_provider();
    let config = kube::Config::new(serve(server.clone()).await.parse().unwrap());
    let clients = client::Clients::new(config, LEASE).unwrap();
    let arguments = Arguments::parse_from([
        "test",
        "--identity",
        "a",
        "--lease-namespace",
        "system",
        "--lease-duration",
        "2s",
    ]);
    let (events, _) = Events::start(clients.requests.clone(), "test", "a");
    let program = Program {
        name: "test",
        version: "0",
    };
    Runtime::new(program, arguments.common, clients, events)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_hung_renewal_does_not_cost_leadership() {
    let server = Server::default();
    let leadership = Leadership::start(&runtime(&server).await);
    until("it leads", || leadership.is_leader_now()).await;
    server.with(|kept| kept.hang = 1);
    until("a renewal hangs", || server.with(|kept| kept.hung == 1)).await;
    let renewed = server.with(|kept| kept.renewed);
    leadership
        .while_leading(until("it is renewed twice more", || {
            server.with(|kept| kept.renewed >= renewed + 2)
        }))
        .await
        .unwrap();
}

/// A kept connection whose other end is gone would let one renewal after the other hang.
#[tokio::test]
async fn every_renewal_has_a_connection_of_its_own() {
    let server = Server::default();
    let runtime = runtime(&server).await;
    let _leadership = Leadership::start(&runtime);
    let _membership = Membership::start(&runtime);
    until("both Leases are renewed several times", || {
        server.with(|kept| kept.renewed >= 8)
    })
    .await;
    let (renewed, connections) = server.with(|kept| (kept.renewed, kept.connections));
    assert!(
        connections >= renewed,
        "{renewed} renewals over {connections} connections"
    );
}

#[tokio::test]
async fn two_hung_renewals_do_not_cost_membership() {
    let server = Server::default();
    let mut membership = Membership::start(&runtime(&server).await);
    assert!(membership.joined().await);
    server.with(|kept| kept.hang = 2);
    until("two renewals hang", || server.with(|kept| kept.hung == 2)).await;
    let renewed = server.with(|kept| kept.renewed);
    until("it is renewed again", || {
        assert!(membership.is_alive_now());
        server.with(|kept| kept.renewed >= renewed + 2)
    })
    .await;
    assert_eq!(membership.lapses(), Some(0));
}

#[tokio::test]
async fn a_server_without_answers_to_writes_ends_leadership_in_time() {
    let server = Server::default();
    let leadership = Leadership::start(&runtime(&server).await);
    until("it leads", || leadership.is_leader_now()).await;
    server.with(|kept| kept.hang = usize::MAX);
    let silent = Instant::now();
    let lost = leadership.while_leading(std::future::pending::<()>()).await;
    assert!(lost.is_err());
    assert!(silent.elapsed() < LEASE, "{:?}", silent.elapsed());
}
