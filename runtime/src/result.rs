//! What is said of one scan by one task: the result JSON, schema `scanside.result/1`.
//!
//! Fields are written in the order in which they stand in [`TaskResult`]. No patient name, patient ID, accession
//! number or date of the scan is in it; UIDs are plain until [`TaskResult::with_uids`] gives them another form.

mod uids;

use std::collections::BTreeMap;
use std::time::SystemTime;

use firmware_config::{Task, Utc};
use serde::{Deserialize, Serialize};
pub use uids::{DeviceKey, UidForm};

use crate::engine::EngineInfo;
use crate::tensor::sha256;
use crate::volume::SourceKind;

/// The value of [`TaskResult::schema`] that this build writes.
pub const SCHEMA: &str = "scanside.result/1";

/// The value of [`TaskResult::intended_use`]: no diagnostic claim is made.
pub const INTENDED_USE: &str = "research";

/// What one task says of one scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// See [`result_id`].
    pub result_id: String,
    /// What kind of result this is.
    pub kind: Kind,
    /// True for [`Kind::Final`] only.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// 0 for a series' first final result; a late slice makes the next one.
    pub revision: u32,
    /// The result that this one takes the place of.
    pub replaces: Option<String>,
    /// When the result was made, UTC, RFC 3339.
    pub created: String,
    /// [`INTENDED_USE`].
    pub intended_use: String,
    /// Whether the plugin's signature was checked.
    pub trust: Trust,
    /// The device that made the result.
    pub device: String,
    /// The task's name and version.
    pub task: Task,
    /// The scan.
    pub input: Input,
    /// One entry a logit, in the order of the logits; empty for [`Kind::Refused`].
    pub labels: Vec<LabelResult>,
    /// Of a task of several views, how much each counted, by its name; they sum to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub view_weights: BTreeMap<String, f32>,
    /// The slices that count most, heaviest first.
    pub key_slices: Vec<KeySlice>,
    /// How long each step took, in ms.
    pub timings_ms: BTreeMap<String, f64>,
    /// All that is needed to compute the result again.
    pub provenance: Provenance,
    /// What a reader should know, a sentence each.
    pub warnings: Vec<String>,
}

/// What kind of result this is; also the first level of its MQTT topic, except that final ones go to `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The whole scan was classified.
    Final,
    /// Slices may still come.
    Preliminary,
    /// A candidate plugin's, for comparison only.
    Shadow,
    /// The scan was not classified; the warnings say why.
    Refused,
}

impl Kind {
    /// The name in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Preliminary => "preliminary",
            Self::Shadow => "shadow",
            Self::Refused => "refused",
        }
    }
}

/// Whether the plugin's signature was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// By keys that the device trusts.
    Signed,
    /// The plugin was given by hand.
    Unsigned,
}

/// The scan that was classified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// NIfTI or DICOM.
    pub kind: SourceKind,
    /// DICOM Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: Option<String>,
    /// Number of DICOM instances; 0 for NIfTI.
    pub instances: usize,
    /// SHA-256 of the input; see [`crate::volume::Source::digest`].
    pub digest: String,
    /// How it was known that the scan is complete.
    pub completion: Completion,
    /// Of a task of several views, the series of each view that was given, by the view's name. `series_uid` is then null,
    /// `instances` their sum and `digest` [`crate::infer::views_digest`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<String, ViewInput>,
}

/// The series of one view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewInput {
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: Option<String>,
    /// Number of DICOM instances; 0 for NIfTI.
    pub instances: usize,
    /// SHA-256 of the input; see [`crate::volume::Source::digest`].
    pub digest: String,
}

/// How it was known that a scan is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// A person or program named the file or folder as it is.
    Given,
    /// Every DICOM association that had sent instances of the series was released.
    AssociationEnd,
    /// As many instances had come as the images say there are.
    ExpectedCount,
    /// No further instance came for as long as the device waits.
    Idle,
    /// Instances still came, but the series had been open for as long as the device lets one be.
    MaxAge,
    /// It is not: the result is preliminary.
    Arriving,
}

impl Completion {
    /// The name in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::AssociationEnd => "association_end",
            Self::ExpectedCount => "expected_count",
            Self::Idle => "idle",
            Self::MaxAge => "max_age",
            Self::Arriving => "arriving",
        }
    }
}

/// One label's logit and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelResult {
    /// The label's name.
    pub name: String,
    /// What the network says.
    pub logit: f32,
    /// After the plugin's temperature and activation.
    pub probability: f64,
    /// The operating point chosen on validation data; null where none was, never 0.5.
    pub threshold: Option<f64>,
    /// Whether the probability reaches the threshold; null without one.
    pub positive: Option<bool>,
}

/// A slice that counted much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeySlice {
    /// The view whose scan it is of, where the task has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// Index along the plane's patient axis: 0 is the lowest, hindmost or leftmost slice of the scan.
    pub index: usize,
    /// DICOM SOP Instance UID (0008,0018) of the instance that holds the slice, where one does: the slice's own, or that
    /// of the enhanced image of which it is a frame.
    pub sop_instance_uid: Option<String>,
    /// Where that instance is an enhanced image, and there only, the slice's number among its frames, from 1 as in
    /// Referenced Frame Number (0008,1160).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_number: Option<u32>,
    /// The task's attention to the slice, times that to its view; those of all slices sum to 1.
    pub weight: f32,
}

/// All that is needed to compute a result again, by SHA-256 in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The backbone file that the plugin was fitted on.
    pub backbone_sha256: String,
    /// The plugin file.
    pub plugin_sha256: String,
    /// The task graph.
    pub graph_sha256: String,
    /// The recipe as JSON.
    pub recipe_sha256: String,
    /// The network's input: SHA-256 of the concatenated SHA-256 digests (32 bytes each) of the slices, in slice
    /// order, each over the slice's `[3, H, W]` f32 values, little-endian. Slices can so be hashed in parallel.
    pub tensor_sha256: String,
    /// How it was computed.
    pub engine: EngineInfo,
    /// The program and its version.
    pub build: String,
    /// The signed target that the plugin came from; not there where the plugin is unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<SignedTarget>,
    /// See [`Provenance::compute_digest`].
    pub digest: String,
}

/// A file of a signed repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTarget {
    /// Its name in the repository.
    pub name: String,
    /// SHA-256 of its bytes, as the repository has signed it.
    pub sha256: String,
}

impl Provenance {
    /// SHA-256 over the other fields that are there, in the order in which they stand, those of `engine` and `target` in their
    /// order too, as text with a newline after each.
    pub fn compute_digest(&self) -> String {
        let engine = &self.engine;
        let threads = engine.threads.to_string();
        let mut lines = vec![
            self.backbone_sha256.as_str(),
            &self.plugin_sha256,
            &self.graph_sha256,
            &self.recipe_sha256,
            &self.tensor_sha256,
            &engine.isa,
            &engine.kernels,
            engine.precision.as_str(),
            engine.mode.as_str(),
            &threads,
            &self.build,
        ];
        if let Some(SignedTarget { name, sha256 }) = &self.target {
            lines.extend([name.as_str(), sha256]);
        }
        sha256_lines(&lines)
    }
}

/// The identity of a result: SHA-256 over device, task name, plugin SHA-256, input digest, kind and revision, as text
/// with a newline after each. Computing again gives the same identity, so consumers can drop what they have seen.
pub fn result_id(device: &str, task: &str, plugin: &str, input: &str, kind: Kind, revision: u32) -> String {
    sha256_lines(&[device, task, plugin, input, kind.as_str(), &revision.to_string()])
}

fn sha256_lines(fields: &[&str]) -> String {
    let text: String = fields.iter().flat_map(|field| [field, "\n"]).collect();
    sha256(text.as_bytes())
}

impl TaskResult {
    /// The result as one line of JSON, without the newline.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data serialises")
    }

    /// The same result without the DICOM UIDs, for networks that others can read; a warning says so.
    #[must_use]
    pub fn without_uids(&self) -> Self {
        let mut out = self.clone();
        let slices = out.key_slices.iter_mut().map(|slice| slice.sop_instance_uid.take());
        let views = out.input.views.values_mut().map(|view| view.series_uid.take());
        let taken = slices.chain(views).chain([out.input.study_uid.take(), out.input.series_uid.take()]);
        if taken.flatten().count() > 0 {
            out.warnings.push("DICOM UIDs are left out because the broker is reached without TLS".into());
        }
        out
    }
}

/// A point in time as RFC 3339 text, UTC, to the millisecond.
pub fn rfc3339(at: SystemTime) -> String {
    let t = time::OffsetDateTime::from(at);
    let (date, clock) = ((t.year(), u8::from(t.month()), t.day()), (t.hour(), t.minute(), t.second()));
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.0,
        date.1,
        date.2,
        clock.0,
        clock.1,
        clock.2,
        t.millisecond()
    )
}

/// A point in time as signed files and reports have it: [`rfc3339`] to the second.
pub fn utc(at: SystemTime) -> Utc {
    let text = rfc3339(at);
    format!("{}Z", &text[..text.find('.').unwrap_or(text.len())]).parse().expect("RFC 3339 in UTC")
}

#[cfg(test)]
pub(crate) mod tests;
