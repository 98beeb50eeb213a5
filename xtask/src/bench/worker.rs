//! A process that answers words on its standard input with lines on its standard output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::shown;

pub struct Worker {
    name: &'static str,
    child: Child,
    /// Dropped first when the worker is: it ends at the end of its input.
    input: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    started: Instant,
    /// What it took to load the graph, as it said.
    pub loading_ms: f64,
}

impl Worker {
    /// Starts it and waits until it is ready.
    pub fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start `{}`", shown(&command)))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} has no pipes");
        };
        let answers = BufReader::new(output);
        let mut worker = Self { name, child, input: Some(input), answers, started, loading_ms: 0.0 };
        let greeting = worker.answer()?;
        worker.loading_ms = greeting
            .strip_prefix("ready ")
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| anyhow!("{name} said {greeting:?}, expected `ready MS`"))?;
        Ok(worker)
    }

    /// Since its process was started.
    pub fn age_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    /// Asks for one number.
    pub fn number(&mut self, word: &str) -> Result<f64> {
        match self.numbers(word)?[..] {
            [number] => Ok(number),
            ref other => bail!("{} answered {word:?} with {} numbers, expected one", self.name, other.len()),
        }
    }

    /// Asks for numbers.
    pub fn numbers(&mut self, word: &str) -> Result<Vec<f64>> {
        let input = self.input.as_mut().context("the worker's input is closed")?;
        writeln!(input, "{word}")
            .and_then(|()| input.flush())
            .with_context(|| format!("{} is gone", self.name))?;
        let answer = self.answer()?;
        answer
            .split_whitespace()
            .map(|text| {
                text.parse().with_context(|| format!("{} answered {word:?} with {answer:?}", self.name))
            })
            .collect()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("{} ended early: its message stands above", self.name);
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input = None;
        // It ends by itself now; nothing could be done about an error.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn words_are_answered_in_turn() {
        let mut worker =
            Worker::start("echo", shell("echo ready 1.5; while read w; do echo 2 3; done")).unwrap();
        assert!((worker.loading_ms - 1.5).abs() < 1e-12);
        assert_eq!(worker.numbers("logits").unwrap(), [2.0, 3.0]);
        assert!(worker.number("run").unwrap_err().to_string().contains("expected one"));
    }

    #[test]
    fn a_worker_that_dies_is_named() {
        let error = Worker::start("sleeper", shell("exit 1")).err().unwrap().to_string();
        assert!(error.starts_with("sleeper ended early"), "{error}");
    }
}
