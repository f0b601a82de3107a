//! What a provider of load balancers does, on loopback: each Service that asks for one gets an address of its own, and what connects there
//! is forwarded to a pod that the Service selects.

use crate::wait::eventually;
use anyhow::{Context, Result};
use crds::{CLIENT_PORT, LABEL_POD_NAME};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Between two looks at the Services.
const AGAIN: Duration = Duration::from_millis(50);

/// The address of each Service that has one.
type Addresses = Arc<Mutex<BTreeMap<String, SocketAddr>>>;

/// A provider; it ends with the value.
pub struct LoadBalancers {
    addresses: Addresses,
    delayed: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl Drop for LoadBalancers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LoadBalancers {
    /// Gives a load balancer to each Service of a namespace that asks for one, but these, until [`Self::provide_all`].
    pub fn start(client: &Client, namespace: &str, delayed: &[&str]) -> Self {
        let addresses = Addresses::default();
        let delayed = delayed.iter().map(|name| (*name).to_owned()).collect();
        let delayed = Arc::new(Mutex::new(delayed));
        let provider = Provider {
            services: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            addresses: addresses.clone(),
            delayed: delayed.clone(),
        };
        let task = tokio::spawn(provider.run());
        Self {
            addresses,
            delayed,
            task,
        }
    }

    /// No Service waits any more.
    pub fn provide_all(&self) {
        locked(&self.delayed).clear();
    }

    /// The addresses of the load balancers there are, by Service.
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        locked(&self.addresses).clone()
    }

    /// Waits until so many Services have one.
    pub async fn are(&self, count: usize) -> Result<BTreeMap<String, SocketAddr>> {
        eventually(&format!("{count} load balancers"), async || {
            Ok(Some(self.addresses()).filter(|found| found.len() == count))
        })
        .await
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Provider {
    services: Api<Service>,
    pods: Api<Pod>,
    addresses: Addresses,
    delayed: Arc<Mutex<BTreeSet<String>>>,
}

impl Provider {
    async fn run(self) {
        let mut forwarders: BTreeMap<String, Forwarder> = BTreeMap::new();
        loop {
            // What fails is tried again.
            if let Ok(services) = self.services.list(&ListParams::default()).await {
                let asking = services.iter().filter(|one| asks(one));
                let asking: BTreeMap<String, &Service> =
                    asking.map(|one| (one.name_any(), one)).collect();
                forwarders.retain(|name, _| asking.contains_key(name));
                for (name, service) in asking {
                    if !forwarders.contains_key(&name)
                        && !self.is_delayed(&name)
                        && let Ok(forwarder) = self.provide(service).await
                    {
                        forwarders.insert(name, forwarder);
                    }
                }
                let there = forwarders.iter();
                let there = there
                    .map(|(name, one)| (name.clone(), one.address))
                    .collect();
                *locked(&self.addresses) = there;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn is_delayed(&self, name: &str) -> bool {
        locked(&self.delayed).contains(name)
    }

    async fn provide(&self, service: &Service) -> Result<Forwarder> {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
        let selector = selector.context("no selector")?;
        let forwarder = Forwarder::start(self.pods.clone(), selector).await?;
        let ingress = json!([{"ip": forwarder.address.ip().to_string()}]);
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        self.services
            .patch_status(&service.name_any(), &PatchParams::default(), &patch)
            .await?;
        Ok(forwarder)
    }
}

fn asks(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    kind == Some("LoadBalancer") && service.metadata.deletion_timestamp.is_none()
}

struct Forwarder {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarder {
    async fn start(pods: Api<Pod>, selector: BTreeMap<String, String>) -> Result<Self> {
        let listener = TcpListener::bind((new_address(), CLIENT_PORT)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (pods, selector) = (pods.clone(), selector.clone());
                tokio::spawn(async move {
                    // A pod that is not reached: the client sees a connection that ends.
                    let server = connect(&pods, &selector).await;
                    if let Ok(mut server) = server {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

/// To one of the pods. Those of these tests have no label with their names.
async fn connect(pods: &Api<Pod>, selector: &BTreeMap<String, String>) -> Result<TcpStream> {
    let named = selector.get(LABEL_POD_NAME);
    let pods = pods.list(&ListParams::default()).await?;
    let mut addresses = pods
        .iter()
        .filter(|pod| named.is_none_or(|name| *name == pod.name_any()))
        .filter_map(|pod| pod.status.as_ref()?.pod_ip.clone());
    let ip: IpAddr = addresses.next().context("no pod")?.parse()?;
    Ok(TcpStream::connect((ip, CLIENT_PORT)).await?)
}

/// Of this run alone: pods have the low numbers.
fn new_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(254);
    let [.., high, low] = process::id().to_be_bytes();
    let last = NEXT.fetch_sub(1, Ordering::Relaxed);
    Ipv4Addr::new(127, high | 0x80, low, last)
}
