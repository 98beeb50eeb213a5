//! What an operator wants of a device, and what the device says of itself.
//!
//! Both travel over MQTT, retained: [`Desired`] signed, under `scanside/v1/{site}/{device}/desired`; [`Reported`] under
//! `…/reported`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Invalid, Task, TopicLevel, Utc};

/// The value of [`Desired::schema`] that this build writes and reads.
pub const DESIRED_SCHEMA: &str = "scanside.desired/1";

/// The value of [`Reported::schema`] that this build writes and reads.
pub const REPORTED_SCHEMA: &str = "scanside.reported/1";

/// The tasks that a device shall run, all of them: an active task that is not among them is taken down.
///
/// On the wire it is the `signed` part of a TUF envelope, signed by the keys of the role that the repository delegates the
/// device's site to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// [`DESIRED_SCHEMA`].
    pub schema: String,
    /// The site of the device it is for.
    pub site: TopicLevel,
    /// The device it is for.
    pub device: TopicLevel,
    /// Counts up; a device never goes back to a smaller one than it has seen.
    pub revision: u64,
    /// It is not acted on after this.
    pub expires: Utc,
    /// What shall run, by task.
    pub tasks: BTreeMap<String, Wanted>,
}

/// The plugin that shall run for a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The signed target.
    pub target: TargetRef,
    /// Runs it beside the active plugin first; absent, it goes live as soon as its golden cases pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
}

/// A file of the signed repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRef {
    /// Its name, for example `north/bowel-injury-1.1.0.plugin`.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// How long a candidate runs beside the active plugin, and what it must show to take its place.
///
/// Fractions stand in JSON as decimal numbers in a text, `"0.95"`: this is signed as canonical JSON, which has no floating point
/// numbers, because there is no one way to write them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Series that both have classified before a verdict.
    pub results: u32,
    /// Who decides then.
    pub promote: Promote,
    /// The share of labels, over all those series, about which both said the same (positive or not; where there is no
    /// threshold, probabilities within [`Self::max_difference`]): at least this.
    #[serde(with = "decimal")]
    pub min_agreement: f64,
    /// The mean absolute difference of probabilities: at most this.
    #[serde(with = "decimal")]
    pub max_difference: f64,
}

/// A number as a text, the shortest that reads back as the same number.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        text.parse()
            .ok()
            .filter(|_| plain)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no decimal number such as \"0.95\"")))
    }
}

/// Who promotes a candidate that has run in the shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promote {
    /// The device, where the rule holds; where it does not, the candidate is given up.
    Rule,
    /// The operator, by a desired state without `shadow`.
    Operator,
}

/// What a device runs, what is under way, and what failed and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// [`REPORTED_SCHEMA`].
    pub schema: String,
    /// The device's site.
    pub site: TopicLevel,
    /// The device.
    pub device: TopicLevel,
    /// The program, for example `scanside 0.1.0`.
    pub build: String,
    /// When it was said, by the device's clock.
    pub at: Utc,
    /// The revision of the desired state that the device follows; none before the first.
    pub revision: Option<u64>,
    /// Why the last desired state that came was not taken over, or cannot be acted on.
    pub refused: Option<String>,
    /// Versions of the signed metadata that the device trusts; none before its first look at a repository.
    pub metadata: Option<MetadataVersions>,
    /// Every task with a plugin on the device, or wanted there.
    pub tasks: BTreeMap<String, ReportedTask>,
}

/// Versions of the roles of a signed repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataVersions {
    /// Of the root.
    pub root: u64,
    /// Of the timestamp.
    pub timestamp: u64,
    /// Of the snapshot.
    pub snapshot: u64,
    /// Of the targets.
    pub targets: u64,
}

/// One task on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportedTask {
    /// Where the task stands.
    pub state: TaskState,
    /// What classifies now.
    pub active: Option<ReportedPlugin>,
    /// What is under way.
    pub candidate: Option<ReportedPlugin>,
    /// What a rollback brings back.
    pub previous: Option<ReportedPlugin>,
    /// The share of the bytes that have come, from 0 to 1, while the candidate is fetched, and then the backbone that it lacks.
    pub progress: Option<f64>,
    /// What failed last, in one sentence; none where the task is as wanted.
    pub failure: Option<String>,
    /// How the candidate does beside the active plugin.
    pub shadow: Option<ShadowReport>,
}

/// Where a task stands on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Runs what is wanted.
    Active,
    /// The wanted plugin is being fetched.
    Fetching,
    /// The wanted plugin's golden cases run.
    Checking,
    /// The wanted plugin runs beside the active one.
    Shadow,
    /// The wanted plugin cannot go live; what was active still is.
    Failed,
    /// Nothing runs: nothing is wanted, or what ran was taken down.
    Down,
}

/// A plugin on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedPlugin {
    /// Name and version of its task.
    pub task: Task,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The signed target that it came from; none where it is unsigned.
    pub target: Option<String>,
}

/// How a candidate does beside the active plugin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShadowReport {
    /// Series that both have classified.
    pub results: u32,
    /// Series that are waited for, in all.
    pub of: u32,
    /// The share of labels about which both said the same.
    pub agreement: f64,
    /// Mean absolute difference of probabilities.
    pub mean_difference: f64,
    /// Largest absolute difference of probabilities.
    pub max_difference: f64,
    /// Mean of the candidate's probabilities less mean of the active plugin's: where it drifts to.
    pub drift: f64,
}

impl Desired {
    /// Checks what types cannot state.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.schema != DESIRED_SCHEMA {
            return Err(Invalid::new("schema", &self.schema, DESIRED_SCHEMA));
        }
        if self.revision == 0 {
            return Err(Invalid::new("revision", 0, "at least 1"));
        }
        for (task, wanted) in &self.tasks {
            Task { name: task.clone(), version: "0.0.0".into() }.validate()?;
            wanted.target.validate()?;
            wanted.shadow.as_ref().map_or(Ok(()), Shadow::validate)?;
        }
        Ok(())
    }
}

impl TargetRef {
    /// Checks what types cannot state.
    pub fn validate(&self) -> Result<(), Invalid> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let level = |level: &str| !level.is_empty() && !level.starts_with('.') && level.chars().all(plain);
        if self.name.len() > 200 || !self.name.split('/').all(level) {
            return Err(Invalid::new(
                "target.name",
                format!("{:?}", self.name),
                "letters, digits, '-', '_' and '.', parted by '/', no part beginning with '.'",
            ));
        }
        if self.sha256.len() != 64
            || !self.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(Invalid::new("target.sha256", &self.sha256, "64 lower-case hexadecimal digits"));
        }
        Ok(())
    }
}

impl Shadow {
    fn validate(&self) -> Result<(), Invalid> {
        if self.results == 0 {
            return Err(Invalid::new("shadow.results", 0, "at least 1"));
        }
        for (field, value) in
            [("shadow.min_agreement", self.min_agreement), ("shadow.max_difference", self.max_difference)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(Invalid::new(field, value, "from 0 to 1"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(json: &str) -> Result<(), String> {
        let desired: Desired = serde_json::from_str(json).map_err(|e| e.to_string())?;
        desired.validate().map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_signed_has_no_floating_point_numbers() {
        let shadow = Shadow { results: 20, promote: Promote::Rule, min_agreement: 0.95, max_difference: 0.1 };
        let json = serde_json::to_string(&shadow).unwrap();
        assert_eq!(json, r#"{"results":20,"promote":"rule","min_agreement":"0.95","max_difference":"0.1"}"#);
        assert_eq!(serde_json::from_str::<Shadow>(&json).unwrap(), shadow);
        for bad in ["0.95", "\"\"", "\"-1\"", "\"NaN\"", "\"1e3\"", "\"0.9.5\""] {
            assert!(serde_json::from_str::<Shadow>(&json.replace("\"0.95\"", bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_desired_state_names_files_that_cannot_lead_out_of_the_repository() {
        let with = |name: &str| {
            let sha256 = "0".repeat(64);
            desired(&format!(
                r#"{{"schema":"scanside.desired/1","site":"north","device":"ct-2","revision":3,"expires":"2027-01-01T00:00:00Z",
                "tasks":{{"bowel":{{"target":{{"name":"{name}","length":10,"sha256":"{sha256}"}}}}}}}}"#
            ))
        };
        with("north/bowel-1.0.0.plugin").unwrap();
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/.b", "a b", "north/ü"] {
            assert!(with(bad).unwrap_err().contains("target.name"), "{bad}");
        }
    }
}
