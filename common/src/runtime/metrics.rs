//! Metrics of the process, in the OpenMetrics text format.

use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The registry and what every controller counts. Cheap to clone. All names begin with `redis_operator_`.
#[derive(Clone, Debug)]
pub struct Metrics {}

impl Metrics {
    /// Registers a product's own metrics (names without the prefix).
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        todo!()
    }
}
