//! Harness of the suites and benchmarks: real servers, real clusters, data sets.

pub mod api_proxy;
pub mod bench;
pub mod certificates;
pub mod client;
pub mod cluster_stage;
pub mod crash;
pub mod dataset;
pub mod drive;
pub mod exporter;
pub mod kubectl;
pub mod kubectl_error;
pub mod kubernetes;
pub mod leases;
pub mod load_balancers;
pub mod login;
pub mod made_up;
pub mod memory;
pub mod namespace;
pub mod noise;
pub mod packages;
pub mod pod_template;
pub mod processor;
pub mod progress;
pub mod redis;
pub mod replica;
pub mod reshard;
#[cfg(test)]
mod rights;
pub mod rules;
pub mod s3;
pub mod scenario;
pub mod servers;
pub mod shapes;
pub mod verify;
pub mod wait;
pub mod writer;
