//! The Kubernetes client of the process.
