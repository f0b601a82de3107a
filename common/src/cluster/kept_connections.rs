//! Connections to nodes that are kept from one reconcile to the next.
//!
//! An open connection leads to the process that it was opened to, whatever the address means by now. So it is kept under address and pod,
//! and only once the server has proved on it that it runs in that pod. That proves nothing for later: what a server reports is judged by
//! what it says of itself in that report, and before a command the server proves its id again.
//!
//! What is reported is what a fresh connection would report, within the same time: a kept one that broke is replaced at once, and one that
//! stays silent for half of the time is joined by a fresh one for the other half. That distinguishes a process that hangs and a network that
//! is cut from a connection that only this side believes in.

use super::{
    endpoint::{Endpoint, NodeAccess},
    node::{NodeClient, NodeError},
};
use futures::future::{Either, select};
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Connections kept in all. Each costs about 40 KiB here, and one of the server's `maxclients` there.
const MOST: usize = 512;
/// No connection is kept for longer: that new ones are accepted is seen by opening one.
const LONGEST: Duration = Duration::from_mins(2);
/// How much longer than the time for an answer a fresh connection may take to fail, so that it is its failure that is reported.
const GRACE: Duration = Duration::from_millis(50);

/// A server process as Kubernetes describes it: the address that was asked, and the pod with its uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerProcess {
    address: SocketAddr,
    pod: String,
}

impl ServerProcess {
    /// The process of a pod at an address. `pod`: namespace, name and uid.
    pub fn new(address: SocketAddr, pod: impl Into<String>) -> Self {
        Self {
            address,
            pod: pod.into(),
        }
    }

    /// Namespace, name and uid of the pod.
    pub fn pod(&self) -> &str {
        &self.pod
    }
}

/// A cluster by namespace and name.
type Key = (String, String);

struct KeptConnection {
    client: NodeClient,
    access: NodeAccess,
    since: Instant,
}

/// The kept connections of all clusters.
#[derive(Default)]
pub struct KeptConnections {
    clusters: Mutex<HashMap<Key, HashMap<ServerProcess, KeptConnection>>>,
    accesses: Mutex<HashMap<Key, NodeAccess>>,
}

impl KeptConnections {
    /// Those of one cluster.
    pub fn of(self: &Arc<Self>, (namespace, name): (&str, &str)) -> ClusterConnections {
        let cluster = (namespace.to_owned(), name.to_owned());
        let access = self.accesses().get(&cluster).cloned();
        ClusterConnections {
            all: Arc::clone(self),
            cluster,
            access: access.unwrap_or_default(),
        }
    }

    /// From now on, the nodes of a cluster are reached so.
    pub fn reach(&self, (namespace, name): (&str, &str), access: NodeAccess) {
        let cluster = (namespace.to_owned(), name.to_owned());
        self.accesses().insert(cluster, access);
    }

    /// Closes those of a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let cluster = (namespace.to_owned(), name.to_owned());
        self.lock().remove(&cluster);
        self.accesses().remove(&cluster);
    }

    /// Closes all.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Closes those that are too old to be used again.
    pub fn close_old(&self, now: Instant) {
        self.lock().retain(|_, kept| {
            kept.retain(|_, one| one.is_usable(now));
            !kept.is_empty()
        });
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.lock().values().map(HashMap::len).sum()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn accesses(&self) -> MutexGuard<'_, HashMap<Key, NodeAccess>> {
        self.accesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, HashMap<ServerProcess, KeptConnection>>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptConnection {
    fn is_usable(&self, now: Instant) -> bool {
        !self.client.is_given_up() && now.saturating_duration_since(self.since) < LONGEST
    }
}

/// The kept connections of one cluster. Cheap to clone.
#[derive(Clone, Default)]
pub struct ClusterConnections {
    all: Arc<KeptConnections>,
    cluster: Key,
    access: NodeAccess,
}

impl ClusterConnections {
    /// Those of a cluster that is the only one.
    pub fn alone(access: NodeAccess) -> Self {
        let all = Arc::<KeptConnections>::default();
        all.reach(("", ""), access);
        all.of(("", ""))
    }

    /// How a node of the cluster is reached; which one is not asked. `timeout` bounds the connecting and each answer.
    pub fn endpoint(&self, address: SocketAddr, timeout: Duration) -> Endpoint {
        self.access.endpoint(address, timeout)
    }

    /// Closes those to other processes than these: their pods are gone, or have other addresses.
    pub fn retain(&self, processes: &HashSet<ServerProcess>) {
        let mut clusters = self.all.lock();
        if let Some(kept) = clusters.get_mut(&self.cluster) {
            kept.retain(|process, _| processes.contains(process));
        }
    }

    /// Keeps a connection whose server has proved on it to be this process, unless there is one already, or too many.
    pub fn keep(&self, process: ServerProcess, client: NodeClient) {
        if client.is_given_up() {
            return;
        }
        let now = Instant::now();
        let mut clusters = self.all.lock();
        let all: usize = clusters.values().map(HashMap::len).sum();
        let kept = clusters.entry(self.cluster.clone()).or_default();
        let new = KeptConnection {
            client,
            access: self.access.clone(),
            since: now,
        };
        match kept.get_mut(&process) {
            Some(one) if one.is_usable(now) => {}
            Some(one) => *one = new,
            None if all < MOST => {
                kept.insert(process, new);
            }
            None => {}
        }
    }

    /// Closes the one that is not to be used again.
    fn discard(&self, process: &ServerProcess) {
        let mut clusters = self.all.lock();
        if let Some(kept) = clusters.get_mut(&self.cluster) {
            kept.retain(|other, one| other != process || !one.client.is_given_up());
        }
    }

    fn kept(&self, process: &ServerProcess) -> Option<NodeClient> {
        let mut clusters = self.all.lock();
        let kept = clusters.get_mut(&self.cluster)?;
        let one = kept.get(process)?;
        // One that was opened by an earlier password, or by none, or before an earlier certificate, is not ours to keep.
        let usable = one.is_usable(Instant::now()) && one.access == self.access;
        if !usable {
            kept.remove(process);
        }
        kept.get(process).map(|one| one.client.clone())
    }

    /// Asks a node, over the kept connection to the process if there is one. The answer, and the connection that it came over.
    ///
    /// The endpoint's timeout bounds it where a connection was kept; otherwise connecting and the answer have it each.
    pub async fn ask<T, Q, F>(
        &self,
        process: Option<&ServerProcess>,
        endpoint: &Endpoint,
        question: Q,
    ) -> Result<(T, NodeClient), NodeError>
    where
        Q: Fn(NodeClient) -> F,
        F: Future<Output = Result<T, NodeError>>,
    {
        let kept = process.and_then(|process| Some((process, self.kept(process)?)));
        let Some((process, kept)) = kept else {
            return ask_fresh(endpoint, &question).await;
        };
        let answer = ask_kept(kept, endpoint, &question).await;
        self.discard(process);
        answer
    }

    /// A connection on which the server has proved just now that it is the expected node: the kept one to the process, or a fresh one.
    /// The endpoint's timeout bounds it.
    pub async fn proven(
        &self,
        process: Option<&ServerProcess>,
        endpoint: &Endpoint,
    ) -> Result<NodeClient, NodeError> {
        let kept = process.and_then(|process| Some((process, self.kept(process)?)));
        let Some((process, kept)) = kept else {
            return NodeClient::connect(endpoint).await;
        };
        let half = endpoint.timeout() / 2;
        match timeout(half, kept.id()).await {
            Ok(Ok(found)) if endpoint.expected().accepts(found) => return Ok(kept),
            Ok(Ok(found)) => {
                kept.give_up();
                self.discard(process);
                return Err(NodeError::WrongNode {
                    address: endpoint.address(),
                    expected: endpoint.expected().clone(),
                    found,
                });
            }
            Ok(Err(error)) if !error.is_unanswered() => return Err(error),
            Ok(Err(_)) | Err(_) => kept.give_up(),
        }
        self.discard(process);
        let rest = endpoint.clone().connecting_within(half);
        let fresh = NodeClient::connect(&rest).await;
        fresh.map_err(|error| of_all_time(error, endpoint))
    }
}

/// Over the kept connection, and over a fresh one where that gives no answer.
async fn ask_kept<T, Q, F>(
    kept: NodeClient,
    endpoint: &Endpoint,
    question: &Q,
) -> Result<(T, NodeClient), NodeError>
where
    Q: Fn(NodeClient) -> F,
    F: Future<Output = Result<T, NodeError>>,
{
    let half = endpoint.timeout() / 2;
    let mut first = pin!(question(kept.clone()));
    match timeout(half, first.as_mut()).await {
        Ok(Ok(answer)) => return Ok((answer, kept)),
        Ok(Err(error)) if error.is_unanswered() => return ask_fresh(endpoint, question).await,
        Ok(Err(error)) => return Err(error),
        Err(_) => kept.give_up(),
    }
    let rest = endpoint.clone().connecting_within(half);
    let second = pin!(ask_fresh(&rest, question));
    match select(first, second).await {
        Either::Left((Ok(answer), _)) => Ok((answer, kept)),
        Either::Left((Err(error), _)) | Either::Right((Err(error), _))
            if !error.is_unanswered() =>
        {
            Err(error)
        }
        Either::Left((Err(error), second)) => match timeout(GRACE, second).await {
            Ok(result) => result.map_err(|error| of_all_time(error, endpoint)),
            Err(_) => Err(error),
        },
        Either::Right((Ok(found), _)) => Ok(found),
        Either::Right((Err(error), first)) => match first.await {
            Ok(answer) => Ok((answer, kept)),
            Err(_) => Err(of_all_time(error, endpoint)),
        },
    }
}

async fn ask_fresh<T, Q, F>(endpoint: &Endpoint, question: &Q) -> Result<(T, NodeClient), NodeError>
where
    Q: Fn(NodeClient) -> F,
    F: Future<Output = Result<T, NodeError>>,
{
    let client = NodeClient::connect(endpoint).await?;
    let answer = question(client.clone()).await?;
    Ok((answer, client))
}

/// The failure of a connection that was tried for the second half of the time: the node had all of it.
fn of_all_time(error: NodeError, endpoint: &Endpoint) -> NodeError {
    if let NodeError::ConnectTimeout { address, step, .. } = error {
        let after = endpoint.timeout();
        return NodeError::ConnectTimeout {
            address,
            step,
            after,
        };
    }
    error
}
