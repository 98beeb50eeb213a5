//! The programs that the demo drives, as a user would.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where the programs are.
pub struct Programs {
    pub folder: PathBuf,
    pub started: Instant,
}

/// A program that ended well.
pub struct Finished {
    /// What it printed on stdout.
    pub stdout: String,
    /// The most memory that it held, in MB.
    pub peak_mb: f64,
}

/// A command line in the making.
pub struct Program(Command);

impl Programs {
    /// A headline with the time since the start.
    pub fn step(&self, title: &str) {
        println!("\n[{:>4.0} s] {title}", self.started.elapsed().as_secs_f64());
    }

    pub fn scanside(&self) -> Program {
        Program(Command::new(self.folder.join("scanside")))
    }

    pub fn trainer(&self) -> Program {
        Program(Command::new(self.folder.join("scanside-train")))
    }
}

impl Program {
    pub fn arg(&mut self, word: impl AsRef<OsStr>) -> &mut Self {
        self.0.arg(word);
        self
    }

    pub fn args(&mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.0.args(words);
        self
    }

    /// Runs it to its end, passing on what it prints; an error if it fails.
    pub fn run(&mut self) -> Result<Finished> {
        let name = self.0.get_program().to_owned();
        let mut child = self
            .0
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", name.display()))?;
        let mut pipe = child.stdout.take().context("its output is piped")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text)
        });
        let status = format!("/proc/{}/status", child.id());
        let mut peak_mb = 0.0;
        let code = loop {
            // The kernel keeps the high-water mark, so the last look before the end is what counts.
            peak_mb = std::fs::read_to_string(&status).ok().and_then(|s| high_water(&s)).unwrap_or(peak_mb);
            match child.try_wait()? {
                Some(code) => break code,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let stdout = reader.join().ok().context("its output was read")??;
        print!("{}", abridged(&stdout));
        if !code.success() {
            bail!("{} ended with {code}", name.display());
        }
        Ok(Finished { stdout, peak_mb })
    }
}

fn high_water(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}

/// Results are shown as they arrive at the subscriber, so not here.
fn abridged(stdout: &str) -> &str {
    if stdout.starts_with('{') { "" } else { stdout }
}
