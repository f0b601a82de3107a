//! The Redis half of the controller: what the nodes say, what is wrong with it, and the steps that repair it.
//!
//! It knows nothing of Kubernetes. [`observe`] asks the nodes, [`survey`] and [`assess`] think about the answers,
//! [`plan`] decides, [`execute`] acts.

pub mod assess;
pub mod balance;
pub mod each_server;
pub mod election;
pub mod execute;
mod failover;
pub mod identity;
pub mod imports;
pub mod member;
pub mod observe;
pub mod plan;
pub mod reshard;
pub mod strays;
pub mod successor;
pub mod survey;
pub mod unserved;
pub mod users;
