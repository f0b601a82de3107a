//! Harness of the suites and benchmarks: real servers, real clusters, data sets.

pub mod bench;
pub mod client;
pub mod crash;
pub mod dataset;
pub mod kubectl;
pub mod kubernetes;
pub mod memory;
pub mod progress;
pub mod redis;
pub mod s3;
pub mod scenario;
pub mod verify;
