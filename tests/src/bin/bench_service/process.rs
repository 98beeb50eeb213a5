//! What Linux says of a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// A process by its number.
pub struct Process(pub u32);

impl Process {
    /// Processor time so far.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // Behind the name, which may hold anything: fields 14 and 15 (proc(5)), in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<u64>().ok());
        let ticks = ticks(11).zip(ticks(12)).context("no processor time")?;
        Ok(Duration::from_millis(10 * (ticks.0 + ticks.1)))
    }

    /// Memory at present, in MB.
    pub fn resident_mb(&self) -> Result<f64> {
        self.status("VmRSS:")
    }

    /// The most memory at any time, in MB.
    pub fn peak_mb(&self) -> Result<f64> {
        self.status("VmHWM:")
    }

    fn status(&self, key: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}
