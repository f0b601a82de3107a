//! Prints the steps of a long program as they happen: what runs, how far it is, how it ended, and where to look when it failed.

use crate::kubectl::Kubectl;
use anyhow::Result;
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// On a terminal one line is written again and again; elsewhere a line now and then has to do.
const REFRESH: Duration = Duration::from_secs(1);
const REFRESH_IN_A_FILE: Duration = Duration::from_secs(10);
/// Characters of a progress line: a terminal wraps longer ones, and a wrapped line cannot be written again.
const WIDTH: usize = 110;

/// The steps of a program.
pub struct Progress<'a> {
    kubectl: &'a Kubectl,
    steps: usize,
    results: Vec<(&'static str, String)>,
}

impl<'a> Progress<'a> {
    /// A program of so many steps, about the objects in a namespace.
    pub fn new(kubectl: &'a Kubectl, steps: usize) -> Self {
        Self {
            kubectl,
            steps,
            results: Vec::new(),
        }
    }

    /// Runs one step to its end. `object` (`rediscluster shop`) is what the step is about: its status is shown meanwhile, and its
    /// failure names the commands that show more.
    pub async fn step<T>(
        &mut self,
        name: &'static str,
        object: &str,
        work: impl Future<Output = Result<(String, T)>>,
    ) -> Result<T> {
        println!("[{}/{}] {name}", self.results.len() + 1, self.steps);
        let ended = tokio::select! {
            ended = work => ended,
            never = self.show(object) => match never {},
        };
        clear_line();
        match ended {
            Ok((result, value)) => {
                println!("      {result}");
                self.results.push((name, result));
                Ok(value)
            }
            Err(error) => {
                println!("      FAILED: {error:#}\n\nWhat shows more:");
                for command in hints(self.kubectl.namespace(), object) {
                    println!("  {command}");
                }
                Err(error)
            }
        }
    }

    /// Prints every step with its result.
    pub fn summary(&self) {
        println!("\n{:<42} RESULT", "STEP");
        for (name, result) in &self.results {
            println!("{name:<42} {result}");
        }
    }

    async fn show(&self, object: &str) -> std::convert::Infallible {
        let started = Instant::now();
        let every = if std::io::stdout().is_terminal() {
            REFRESH
        } else {
            REFRESH_IN_A_FILE
        };
        loop {
            tokio::time::sleep(every).await;
            let status = format!(
                "get {object} --ignore-not-found -o jsonpath={{.status.phase}}:{{.status.message}}"
            );
            let status = self.kubectl.run(&status).await.unwrap_or_default();
            let line = progress_line(started.elapsed(), object, &status);
            if std::io::stdout().is_terminal() {
                print!("\r\x1b[K{line}");
                let _ = std::io::stdout().flush();
            } else {
                println!("{line}");
            }
        }
    }
}

fn clear_line() {
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K");
    }
}

/// One line: the time since the step began, and `phase:message` of its object if it has a status yet.
fn progress_line(elapsed: Duration, object: &str, status: &str) -> String {
    let seconds = elapsed.as_secs();
    let line = match status.split_once(':').unwrap_or_default() {
        ("", _) => format!("      {seconds} s"),
        (phase, "") => format!("      {seconds} s  {object}: {phase}"),
        (phase, message) => format!("      {seconds} s  {object}: {phase}, {message}"),
    };
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => line[..end].to_owned() + "…",
        None => line,
    }
}

/// Commands that show why a step about `object` failed.
fn hints(namespace: &str, object: &str) -> [String; 3] {
    let controller = if object.starts_with("redisbackup") {
        "backup-controller"
    } else if object.starts_with("redisrestore") {
        "restore-controller"
    } else {
        "cluster-controller"
    };
    [
        format!("kubectl -n {namespace} describe {object}"),
        format!("kubectl -n {namespace} get pods,events"),
        format!(
            "kubectl -n redis-operator-system logs -l app.kubernetes.io/name={controller} --tail 50"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::{Duration, WIDTH, hints, progress_line};

    #[test]
    fn a_progress_line_shows_the_status_on_one_line() {
        let after = Duration::from_secs(7);
        assert_eq!(progress_line(after, "rediscluster shop", ""), "      7 s");
        assert_eq!(
            progress_line(after, "rediscluster shop", "Forming:2 of 6 nodes answer"),
            "      7 s  rediscluster shop: Forming, 2 of 6 nodes answer"
        );
        let long = progress_line(
            after,
            "rediscluster shop",
            &("Forming:".to_owned() + &"é".repeat(300)),
        );
        assert_eq!(long.chars().count(), WIDTH + 1);
    }

    #[test]
    fn a_failed_step_names_the_controller_of_its_object() {
        assert!(hints("redis-demo", "redisbackup shop-now")[2].contains("name=backup-controller"));
        assert!(
            hints("redis-demo", "rediscluster shop")[0].ends_with("describe rediscluster shop")
        );
    }
}
