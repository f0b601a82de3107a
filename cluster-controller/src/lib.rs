//! The cluster-controller: forms and heals Redis Clusters on Kubernetes.

pub mod redis;
