//! Forms and repairs Redis Clusters on Kubernetes.

fn main() -> std::process::ExitCode {
    cluster_controller::run::main()
}
