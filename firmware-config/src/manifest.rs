use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Accepts, Invalid, MissingViews, Recipe, View, validate_views};

/// The value of [`Manifest::schema`] that this build writes and reads.
pub const SCHEMA: &str = "scanside.plugin/1";

/// What a task plugin says of itself: `manifest.json` inside the plugin file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name and version of the task.
    pub task: Task,
    /// One label a logit, in the order of the logits.
    pub labels: Vec<Label>,
    /// How logits become probabilities.
    pub activation: Activation,
    /// Logits are divided by it before the activation (calibration); 1 where none was fitted.
    pub temperature: f64,
    /// The backbone that the factors belong to.
    pub backbone: BackboneRef,
    /// Where the factors sit and how they are scaled.
    pub lora: LoraSpec,
    /// Preprocessing; of a task with views, that of those which have none of their own.
    pub recipe: Recipe,
    /// Views by name, each an input of its own; none where the task looks at one series.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<String, View>,
    /// What is done where not every view is given.
    #[serde(default, skip_serializing_if = "MissingViews::is_default")]
    pub missing_views: MissingViews,
    /// [`Manifest::is_streamable`], written out for readers.
    pub streamable: bool,
    /// What the plugin may be given; without it the service does not run the plugin.
    #[serde(default)]
    pub accepts: Option<Accepts>,
    /// What the heat map is: `cls-attention`, `pool-attention` or `pooled-similarity` (docs/backbones.md).
    pub heatmap: String,
    /// Trainable parameters: factors, query and head.
    pub parameters: usize,
    /// SHA-256 of the canonical content: factors, query, head, LoRA scaling and recipe.
    pub content_sha256: String,
    /// How factors, query and head stand in the file; merged and hashed they are f32 in any case.
    #[serde(default, skip_serializing_if = "ContentDtype::is_default")]
    pub content_dtype: ContentDtype,
    /// SHA-256 of the merged task graph.
    pub graph_sha256: String,
    /// What a device must reproduce before the plugin goes live.
    #[serde(default)]
    pub golden: Vec<GoldenCase>,
    /// What wrote the plugin, for example `scanside-train 0.1.0`.
    pub build: String,
}

/// How factors, query and head stand in a plugin file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentDtype {
    /// Four bytes a number.
    #[default]
    F32,
    /// Two bytes a number (IEEE 754 binary16): half the megabyte, for numbers that were rounded before anything was made of them.
    F16,
}

impl ContentDtype {
    /// Whether it need not be written.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Name and version of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Lower-case letters, digits and dashes; it stands in file names and MQTT topics.
    pub name: String,
    /// `MAJOR.MINOR.PATCH`.
    pub version: String,
}

/// One output of the classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The label's name, as the column of the training data.
    pub name: String,
    /// The operating point, if one was chosen on validation data; never a default of 0.5.
    #[serde(default)]
    pub threshold: Option<Threshold>,
}

/// An operating point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Positive where the probability is at least this.
    pub probability: f64,
    /// How it was chosen, for example `youden on validation`.
    pub rule: String,
}

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Each label by itself (one label, or several that may hold together).
    #[default]
    Sigmoid,
    /// Exactly one label holds.
    Softmax,
}

impl Activation {
    /// Probabilities of `logits` after division by `temperature`.
    pub fn probabilities(self, logits: &[f32], temperature: f64) -> Vec<f64> {
        let scaled = logits.iter().map(|&z| f64::from(z) / temperature);
        match self {
            Self::Sigmoid => scaled.map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
            Self::Softmax => {
                let scaled: Vec<f64> = scaled.collect();
                let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exp: Vec<f64> = scaled.iter().map(|z| (z - max).exp()).collect();
                let sum: f64 = exp.iter().sum();
                exp.iter().map(|e| e / sum).collect()
            }
        }
    }
}

/// The backbone that a plugin's factors belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneRef {
    /// What people call it, for example `DINOv2 ViT-S/14`.
    pub name: String,
    /// SHA-256 of the backbone file as it is on disk.
    pub sha256: String,
    /// Only the first so many blocks are used, then the final norm; all where absent.
    #[serde(default)]
    pub blocks: Option<usize>,
    /// The backbone's licence; a plugin is a derivative where the licence says so.
    pub licence: String,
}

/// Where the LoRA factors sit: always on the patch embedding (but for a DaViT's) and on every attention projection of the
/// blocks, `W' = W + (alpha / rank) B A`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    /// Rank r.
    pub rank: usize,
    /// Alpha; the product of the factors is scaled by alpha / rank.
    pub alpha: f32,
    /// How the query, key and value projections are adapted.
    pub attention: AttentionLora,
}

impl LoraSpec {
    /// alpha / rank.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// How the query, key and value projections are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionLora {
    /// One A `[r, d]` shared by the fused projection, B `[3 d, r]`: the paper's form for DINO.
    #[default]
    Fused,
    /// Own A and B for each of query, key and value.
    Separate,
}

/// An input with the outputs that the trainer got for it.
///
/// The input is a volume under the case's name among the plugin's golden tensors, `[nz, ny, nx]`,
/// axes along RAS+; the slices that the recipe makes of it go through the graph. Every view is given the same volume; slices are
/// counted through the views, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenCase {
    /// Name of the case.
    pub name: String,
    /// Where its input comes from.
    #[serde(default, skip_serializing_if = "Origin::is_default")]
    pub origin: Origin,
    /// Voxel spacing along x, y, z, in mm.
    pub spacing_mm: [f64; 3],
    /// Expected logits.
    pub logits: Vec<f32>,
    /// Expected weight of each slice.
    pub slice_weights: Vec<f32>,
    /// Slice, row and column of the heat map's largest value.
    pub heatmap_peak: [usize; 3],
    /// How far a device may be off.
    pub tolerance: Tolerance,
}

/// Where the input of a golden case comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Made up.
    #[default]
    Synthetic,
    /// A patient's scan: whoever has the plugin has it.
    Patient,
}

impl Origin {
    /// Whether it need not be written.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How far a device may be off from a golden case, as largest absolute differences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// Of the logits.
    pub logits: f32,
    /// Of the slice weights.
    pub slice_weights: f32,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { logits: 1e-3, slice_weights: 1e-3 }
    }
}

impl Manifest {
    /// Whether slices can be encoded as they arrive: there is one view, and its recipe is [`Recipe::streamable`].
    pub fn is_streamable(&self) -> bool {
        self.views.is_empty() && self.recipe.streamable()
    }

    /// The golden cases whose input is a patient's scan, by name; none where none is.
    pub fn patient_golden(&self) -> Option<String> {
        let patients = self.golden.iter().filter(|case| case.origin == Origin::Patient);
        let names: Vec<&str> = patients.map(|case| case.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Checks what types cannot state.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.schema != SCHEMA {
            return Err(Invalid::new("schema", &self.schema, SCHEMA));
        }
        self.task.validate()?;
        if self.labels.is_empty() {
            return Err(Invalid::new("labels", "empty", "at least one label"));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Invalid::new("temperature", self.temperature, "positive"));
        }
        if self.lora.rank == 0 || !self.lora.alpha.is_finite() {
            return Err(Invalid::new(
                "lora",
                format!("rank {} alpha {}", self.lora.rank, self.lora.alpha),
                "a rank of at least 1 and a finite alpha",
            ));
        }
        for (field, hash) in [
            ("backbone.sha256", &self.backbone.sha256),
            ("content_sha256", &self.content_sha256),
            ("graph_sha256", &self.graph_sha256),
        ] {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if hash.len() != 64 || !hash.bytes().all(hex) {
                return Err(Invalid::new(field, hash, "64 lower-case hexadecimal digits"));
            }
        }
        self.recipe.validate()?;
        validate_views(&self.views, self.missing_views)?;
        if self.streamable != self.is_streamable() {
            return Err(Invalid::new(
                "streamable",
                self.streamable,
                format!("{}, as recipe and views imply", self.is_streamable()),
            ));
        }
        self.accepts.as_ref().map_or(Ok(()), Accepts::validate)
    }
}

impl Task {
    /// Checks that the name can stand in file names and MQTT topics, and the version's form.
    pub fn validate(&self) -> Result<(), Invalid> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(plain) {
            return Err(Invalid::new(
                "task.name",
                &self.name,
                "1 to 64 lower-case letters, digits and dashes",
            ));
        }
        let parts: Vec<&str> = self.version.split('.').collect();
        let number = |p: &&str| p.len() <= 9 && p.parse::<u32>().is_ok_and(|n| n.to_string() == **p);
        if parts.len() != 3 || !parts.iter().all(number) {
            return Err(Invalid::new("task.version", &self.version, "MAJOR.MINOR.PATCH"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_names_and_versions_are_plain() {
        let task = |n: &str, v: &str| Task { name: n.into(), version: v.into() }.validate();
        assert!(task("bowel-injury", "1.0.12").is_ok());
        for bad in ["", "a/b", "A", "a b", "ä", "+"] {
            assert_eq!(task(bad, "1.0.0").unwrap_err().field, "task.name", "{bad}");
        }
        for bad in ["1", "1.0", "1.0.x", "1.0.-1", "01.0.0", "1.0.0-rc1"] {
            assert_eq!(task("a", bad).unwrap_err().field, "task.version", "{bad}");
        }
    }

    #[test]
    fn a_golden_case_is_synthetic_unless_it_says_otherwise() {
        let plain = r#"{"name":"a","spacing_mm":[1.0,1.0,1.0],"logits":[],"slice_weights":[],"heatmap_peak":[0,0,0],"tolerance":{"logits":0.5,"slice_weights":0.5}}"#;
        let mut case: GoldenCase = serde_json::from_str(plain).unwrap();
        assert_eq!(case.origin, Origin::Synthetic);
        assert_eq!(serde_json::to_string(&case).unwrap(), plain, "older manifests keep their bytes");
        case.origin = Origin::Patient;
        let text = serde_json::to_string(&case).unwrap();
        assert!(text.contains(r#""origin":"patient""#), "{text}");
        assert_eq!(serde_json::from_str::<GoldenCase>(&text).unwrap(), case);
    }

    #[test]
    fn probabilities_follow_the_activation() {
        let p = Activation::Sigmoid.probabilities(&[0.0, 2.0], 2.0);
        assert!((p[0] - 0.5).abs() < 1e-12 && (p[1] - 0.731_058_578_6).abs() < 1e-9);
        let p = Activation::Softmax.probabilities(&[1000.0, 1000.0, -1000.0], 1.0);
        assert!((p[0] - 0.5).abs() < 1e-12 && p[2] == 0.0);
    }
}
