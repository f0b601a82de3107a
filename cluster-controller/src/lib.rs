//! The cluster-controller: forms and repairs Redis Clusters on Kubernetes.
//!
//! Data and decisions, pure: [`validate`], [`build`], [`checkpoint`], [`sets`], [`leftovers`], [`rollout`], [`operation`], [`decision`], [`pods`], [`roles`],
//! [`serving`], [`settings`], [`fencing`], [`volumes`], [`status`], [`upgrade`], [`support`], [`users::plan`], [`certificates::plan`], [`requeue`], [`metrics`], [`redis::survey`], [`redis::assess`], [`redis::balance`],
//! [`redis::plan`].
//! Input and output: [`observe`], [`children`], [`volume_claims`], [`pod_events`], [`machines`], [`zones`], [`pod_patch`], [`replace`], [`change`], [`hibernate`],
//! [`resharding`], [`connections`], [`trials`], [`secrets`], [`users`], [`certificates`], [`live_settings`], [`redis::observe`], [`redis::execute`]. All together in [`reconcile`].

pub mod access;
pub mod build;
pub mod certificates;
pub mod change;
pub mod checkpoint;
pub mod children;
pub mod connections;
pub mod context;
pub mod copies;
pub mod decision;
pub mod elections;
pub mod errors;
pub mod events;
pub mod fencing;
pub mod hand_overs;
pub mod held;
pub mod hibernate;
pub mod leftovers;
pub mod live_settings;
pub mod losses;
pub mod machines;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod observe;
pub mod operation;
pub mod pod_events;
pub mod pod_patch;
pub mod pods;
pub mod progress;
pub mod reconcile;
pub mod redis;
pub mod replace;
pub mod requeue;
pub mod resharding;
pub mod resizes;
pub mod roles;
pub mod rollout;
pub mod run;
pub mod secrets;
pub mod serving;
pub mod sets;
pub mod settings;
pub mod status;
pub mod support;
pub mod trials;
pub mod unresponsive;
pub mod upgrade;
pub mod users;
pub mod validate;
pub mod volume_claims;
pub mod volumes;
pub mod zones;
