//! The cluster-controller: forms and repairs Redis Clusters on Kubernetes.
//!
//! Data and decisions, pure: [`validate`], [`build`], [`checkpoint`], [`pods`], [`status`], [`requeue`], [`metrics`], [`redis::survey`], [`redis::assess`],
//! [`redis::plan`].
//! Input and output: [`observe`], [`children`], [`pod_events`], [`roles`], [`redis::observe`], [`redis::execute`]. All together on one
//! screen: [`reconcile`].

pub mod build;
pub mod checkpoint;
pub mod children;
pub mod context;
pub mod errors;
pub mod events;
pub mod metrics;
pub mod observe;
pub mod pod_events;
pub mod pods;
pub mod reconcile;
pub mod redis;
pub mod requeue;
pub mod roles;
pub mod run;
pub mod status;
pub mod unresponsive;
pub mod validate;
