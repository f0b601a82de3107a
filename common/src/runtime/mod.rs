//! One process: arguments, telemetry, metrics, health, tasks, shutdown.
