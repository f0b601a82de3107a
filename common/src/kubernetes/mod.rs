//! What every controller does with the Kubernetes API.
