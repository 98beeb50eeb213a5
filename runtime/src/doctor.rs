//! Is this box fit for the service? One [`Check`] a question, each with what was found and what mends it.
//!
//! The questions are asked from outside, as a person at the box would: nothing is changed but for a file that is written into the
//! data folder and removed again, and a service that is running is not disturbed. What a question needs (the
//! clock's time, Linux's files, the configuration) is an argument, so that tests can give a box that is broken.

mod clock;
mod disk;
mod machine;
mod network;
mod weights;

use std::path::Path;
use std::time::SystemTime;

use firmware_config::device::Device;
use serde::Serialize;

use crate::service::machine::{THERMAL, temperatures};
use weights::Weights;

/// What an answer means for the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// The service works, but somebody should look.
    Warn,
    /// The service does not start, or does not do what it is for.
    Fail,
}

impl Grade {
    /// The name in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was asked about: `cpu`, `disk`, `broker`, ….
    pub name: &'static str,
    /// What it means.
    pub grade: Grade,
    /// What was found, as a phrase.
    pub finding: String,
    /// What to do; none where nothing is to be done.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, grade: Grade::Ok, finding: on_one_line(finding), remedy: None }
    }

    fn warn(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(on_one_line(remedy));
        Self { name, grade: Grade::Warn, finding: on_one_line(finding), remedy }
    }

    fn fail(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Fail, ..Self::warn(name, finding, remedy) }
    }
}

fn on_one_line(text: impl Into<String>) -> String {
    text.into().replace(['\n', '\r'], " ")
}

/// Asks everything, and what can be asked without a configuration where there is none. An error is why the
/// configuration cannot be used.
pub fn examine(config: Option<Result<&Device, String>>, now: SystemTime) -> Vec<Check> {
    let mut checks = Vec::new();
    let device = match config {
        None => None,
        Some(Ok(device)) => {
            checks.extend(cautions(device));
            Some(device)
        }
        Some(Err(problem)) => {
            let remedy = "mend the file; `scanside config example` prints one to begin with";
            checks.push(Check::fail("config", problem, remedy));
            None
        }
    };
    let weights = device.map(Weights::read);
    let need = device.zip(weights.as_ref()).and_then(|(device, weights)| weights.memory(device));
    checks.push(machine::cpu(&crate::engine::isa(), machine::cores(), device.and_then(|d| d.threads)));
    checks.push(machine::memory(&machine::meminfo(), need));
    checks.extend(machine::heat(&temperatures(Path::new(THERMAL))));
    let store = device.map(|device| disk::survey(&device.data_dir.join("store")));
    let newest = store.as_ref().and_then(|found| found.newest.as_ref());
    checks.push(clock::clock(now, newest, clock::synchronised()));
    let (Some(device), Some(weights)) = (device, weights) else { return checks };
    checks.push(disk::folder(&device.data_dir));
    checks.extend(disk::space(&device.data_dir, &device.store, store.as_ref().map_or(0, |s| s.bytes)));
    checks.extend(disk::key(device));
    checks.extend(weights.checks(device));
    let service = network::service(device);
    checks.push(service.check());
    checks.push(network::dicom(device, &service));
    checks.push(network::broker(device));
    checks.extend(network::updates(device));
    checks
}

fn cautions(device: &Device) -> Vec<Check> {
    let cautions = device.cautions();
    if cautions.is_empty() {
        return vec![Check::ok("config", "every key is valid")];
    }
    let remedy = "see docs/config.md, or leave it if it is meant";
    cautions.into_iter().map(|caution| Check::warn("config", caution, remedy)).collect()
}

/// A number of bytes for people.
fn shown(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b => format!("{:.0} MB", b / 1e6),
    }
}
