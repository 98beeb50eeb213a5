//! A rollout: one task's version over many devices, wave by wave, stopped where too many fail.
//!
//! [`step`] decides, from the plan, what the broker keeps about the devices, and the time. The state is a signed file that is written
//! before anybody is told anything, so that whoever goes on after a crash tells again what may not have been told, and nothing else.

mod plan;
mod step;
mod store;

use std::collections::BTreeMap;

use firmware_config::{Shadow, TargetRef, Utc, Wanted};
use serde::{Deserialize, Serialize};

use crate::desired::DeviceName;

pub use plan::{Waves, base, fractions, share};
pub use step::step;
pub use store::{check_name, list, load, save};

/// The value of [`Rollout::schema`].
pub const SCHEMA: &str = "scanside.rollout/1";

/// A rollout and how far it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// [`SCHEMA`].
    pub schema: String,
    /// Its name, also its file's.
    pub name: String,
    /// The task.
    pub task: String,
    /// The version that shall run.
    pub version: String,
    /// The signed target, by site.
    pub targets: BTreeMap<String, TargetRef>,
    /// Runs it beside the active plugin first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// The devices, in the order in which they are told.
    pub waves: Vec<Vec<DeviceName>>,
    /// It stops when more than so many thousandths of the devices told have failed.
    pub max_failures: u32,
    /// A wave's verdicts must stand for so many seconds before the next wave.
    pub settle: u64,
    /// A device that is not done after so many seconds counts as failed, unless it runs in the shadow.
    pub patience: u64,
    /// For how many days the desired states hold.
    pub days: u16,
    /// When it was started.
    pub created: Utc,
    /// Counts up with every change of the file.
    pub serial: u64,
    /// Where it stands.
    pub status: Status,
    /// Why it stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The devices that were told.
    pub devices: BTreeMap<DeviceName, Progress>,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Goes on.
    Running,
    /// An operator halted it.
    Paused,
    /// Too many failed; an operator must decide.
    Stopped,
    /// Puts back what was before.
    Aborting,
    /// Has put back what was before.
    Aborted,
    /// Every device was told and judged.
    Done,
}

/// A device that was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What it was to run before; none where it had no desired state.
    pub before: BTreeMap<String, Wanted>,
    /// The revision that tells it.
    pub revision: u64,
    /// The tasks that it is told.
    pub tasks: BTreeMap<String, Wanted>,
    /// When it was told, in seconds since 1970.
    pub told: u64,
    /// What came of it.
    pub verdict: Verdict,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What came of telling a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is at it.
    Waiting,
    /// It runs the plugin.
    Healthy,
    /// It does not, or is silent.
    Failed,
    /// Another operator has told it something else since; that stands.
    Overtaken,
    /// It is told again what was before.
    Restoring,
    /// What was before is its desired state again.
    Restored,
}

impl Rollout {
    /// All its devices.
    pub fn all(&self) -> impl Iterator<Item = &DeviceName> {
        self.waves.iter().flatten()
    }

    /// How many of the devices told have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.devices.values().filter(|device| device.verdict == verdict).count()
    }

    /// The first wave that was not told, counted from 0; their number where all were.
    pub fn next_wave(&self) -> usize {
        let told = |wave: &Vec<DeviceName>| wave.iter().all(|device| self.devices.contains_key(device));
        self.waves.iter().position(|wave| !told(wave)).unwrap_or(self.waves.len())
    }

    /// Whether more have failed than may.
    pub fn too_many_failed(&self) -> bool {
        let failed = self.count(Verdict::Failed) as u64;
        failed * 1000 > u64::from(self.max_failures) * self.devices.len() as u64
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let all = self.all().count();
        let mut text = format!(
            "wave {} of {}: {} of {all} told, {} healthy, {} failed, {} waiting",
            self.next_wave(),
            self.waves.len(),
            self.devices.len(),
            self.count(Verdict::Healthy),
            self.count(Verdict::Failed),
            self.count(Verdict::Waiting),
        );
        for (verdict, name) in [(Verdict::Overtaken, "overtaken"), (Verdict::Restored, "put back")] {
            match self.count(verdict) {
                0 => {}
                count => text += &format!(", {count} {name}"),
            }
        }
        text
    }
}
