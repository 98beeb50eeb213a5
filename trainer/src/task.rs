//! `task.toml`: what is to be learned, and how.
//!
//! The least that runs:
//! ```
//! # let toml = r#"
//! name = "lesion"
//! version = "0.1.0"
//! labels = ["lesion"]
//!
//! [recipe]
//! plane = "axial"
//! size = [224, 224]
//! intensity = { kind = "percentile", low = 1, high = 99 }
//! # "#;
//! # let task: trainer::task::Task = toml::from_str(toml).unwrap();
//! # task.validate(14).unwrap();
//! ```
//! Every other key has the default that stands beside it below; a key that is not known is an error.

mod augment;
mod targets;

use std::collections::BTreeMap;
use std::path::Path;

pub use augment::{Augment, Change};
use firmware_config::{
    Accepts, Activation, AttentionLora, LoraSpec, MissingViews, Recipe, View, inputs, validate_views,
};
use serde::{Deserialize, Serialize};
pub use targets::Targets;

use crate::Error;
use crate::data::Sampling;
use crate::loss::Loss;
use crate::metrics::Rule;
use crate::model::Pooling;

/// A classification task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Lower-case letters, digits and dashes.
    pub name: String,
    /// `MAJOR.MINOR.PATCH`.
    pub version: String,
    /// The columns of the data table that are learned, in the order of the logits.
    pub labels: Vec<String>,
    /// Use only the backbone's first so many blocks, then its final norm. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// How logits become probabilities. Default: softmax for cross-entropy, else sigmoid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Default: `{ kind = "focal", gamma = 2, alpha = 0.25 }`; also `{ kind = "bce" }`, `{ kind = "ce" }`, `{ kind = "ordinal" }`.
    #[serde(default)]
    pub loss: Loss,
    /// How a label's threshold is chosen on the validation volumes. Default: `{ kind = "youden" }`; also `{ kind = "sensitivity",
    /// at_least = 0.95 }` and the same of `specificity`.
    #[serde(default)]
    pub threshold: Rule,
    /// Where the factors sit.
    #[serde(default)]
    pub lora: Lora,
    /// Preprocessing; of a task of several views, that of those which have none of their own.
    pub recipe: Recipe,
    /// Views by name, each with factors and a query of its own; the table has a column `image:NAME` for each. Default: none, one
    /// column `image`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<String, View>,
    /// What is done with rows, and on the device with studies, that lack a view: `refuse`, or `pool` those that are there.
    /// Default: refuse.
    #[serde(default, skip_serializing_if = "MissingViews::is_default")]
    pub missing_views: MissingViews,
    /// What the plugin may be given. Default: nothing is said, and the service does not run the plugin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<Accepts>,
    /// How the fit is run.
    #[serde(default)]
    pub train: Train,
}

/// Rank, scale and form of the factors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank r. Default: 8.
    pub rank: usize,
    /// The product of the factors is scaled by alpha / rank. Default: 16.
    pub alpha: f32,
    /// `fused`: query, key and value share one A; `separate`: each has its own. Default: fused.
    pub attention: AttentionLora,
    /// Where they are learned, of `patch`, `qkv` and `output` (of the attention); the others stay zero. Default: all three.
    #[serde(skip_serializing_if = "Targets::is_all")]
    pub targets: Targets,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, attention: AttentionLora::Fused, targets: Targets::ALL }
    }
}

/// How a fit is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the training volumes. Default: 100.
    pub epochs: usize,
    /// Volumes a step. Default: 4.
    pub batch: usize,
    /// Learning rate of the factors. Default: 1e-4.
    pub lr_lora: f64,
    /// Learning rate of query and head. Default: 1e-3.
    pub lr_head: f64,
    /// Weight decay of the factors. Default: 1e-5.
    pub decay_lora: f64,
    /// Weight decay of query and head. Default: 1e-4.
    pub decay_head: f64,
    /// Share of all steps over which the learning rates rise; then they follow half a cosine to zero. Default: 0.05.
    pub warmup: f64,
    /// Everything random follows from it. Default: 0.
    pub seed: u64,
    /// Most slices that a worker takes through the network at a time; there are as many workers as threads, but no more
    /// than the batch has volumes. Memory grows with it, the result does not depend on it beyond
    /// rounding. Default: 16.
    pub chunk: usize,
    /// Most memory for prepared slices, in MiB; what does not fit is prepared again in every epoch. Default: 2048.
    pub cache_mb: usize,
    /// Most memory for volumes that are prepared ahead of the network, in MiB. Default: 1024.
    pub prefetch_mb: usize,
    /// Go on without scans that cannot be read, telling of each once, rather than stop at the first. Default: false.
    pub skip_unreadable: bool,
    /// Largest norm of a step's gradients; longer ones are shortened to it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Share of every target that is spread over the classes (label smoothing). Default: 0.
    pub smoothing: f64,
    /// Decay of a running mean of the parameters over the steps, which is validated and kept in their stead. Default:
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Stop after so many epochs without a better one on the validation volumes. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// How slices become one vector: `query`, and to compare it with `mean`, `median`, `lstm`, `transformer` or
    /// `three-planes`, which no plugin can have. Default: query.
    pub pooling: Pooling,
    /// Which volumes an epoch takes: `all`, or as many drawn so that classes are `balanced`. Default: all.
    pub sampling: Sampling,
    /// Changes to the training slices.
    pub augment: Augment,
    /// Learn from masks too. Default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixel: Option<Pixel>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch: 4,
            lr_lora: 1e-4,
            lr_head: 1e-3,
            decay_lora: 1e-5,
            decay_head: 1e-4,
            warmup: 0.05,
            seed: 0,
            chunk: 16,
            cache_mb: 2048,
            prefetch_mb: 1024,
            skip_unreadable: false,
            clip: None,
            smoothing: 0.0,
            ema: None,
            patience: None,
            pooling: Pooling::Query,
            sampling: Sampling::All,
            augment: Augment::default(),
            pixel: None,
        }
    }
}

/// Pixel supervision: the training volumes with a mask also have to show where the finding is, by a decoder that no plugin has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pixel {
    /// Factor on the mean [loss](crate::loss::pixel) of the batch's volumes with a mask, added to that of the labels. Default: 1.
    pub weight: f64,
    /// Channels of the decoder. Default: 32.
    pub width: usize,
}

impl Default for Pixel {
    fn default() -> Self {
        Self { weight: 1.0, width: 32 }
    }
}

impl Task {
    /// Reads and checks a task file; `patch` as in [`Task::validate`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            Error::Task { path: path.into(), problem: format!("line {line}: {}", e.message()) }
        })
    }

    /// The task as a task file with every default written out; `path` is the file that it was read from, for messages.
    pub fn resolved(&self, path: &Path) -> Result<String, Error> {
        let wrong = |problem: String| Error::Task { path: path.into(), problem };
        // The patch size is the backbone's, which is not asked here.
        self.validate(1).map_err(wrong)?;
        toml::to_string(self).map_err(|e| wrong(e.to_string()))
    }

    /// Checks what types cannot state; `patch` is the backbone's patch size in pixels. One sentence where it fails.
    pub fn validate(&self, patch: usize) -> Result<(), String> {
        let invalid = |e: firmware_config::Invalid| e.to_string();
        firmware_config::Task { name: self.name.clone(), version: self.version.clone() }
            .validate()
            .map_err(invalid)?;
        self.recipe.validate().map_err(invalid)?;
        if let Some(accepts) = &self.accepts {
            accepts.validate().map_err(invalid)?;
        }
        let wrong = |field: &str, found: &dyn std::fmt::Display, expected: &str| {
            Err(format!("{field} is {found}, but must be {expected}"))
        };
        if self.labels.is_empty() {
            return wrong("labels", &"empty", "a list of at least one column of the data table");
        }
        for (i, label) in self.labels.iter().enumerate() {
            let reserved =
                ["id", "patient", "split", "image", "mask"].contains(&label.as_str()) || label.contains(':');
            if label.trim().is_empty() || reserved || self.labels[..i].contains(label) {
                let found = format!("{label:?} at place {}", i + 1);
                return wrong(
                    "labels",
                    &found,
                    "names that are not id, patient, split, image or mask, without colon, each once",
                );
            }
        }
        validate_views(&self.views, self.missing_views).map_err(invalid)?;
        for (view, recipe) in self.inputs() {
            if recipe.size.iter().any(|n| n % patch != 0) {
                let expected = format!("two multiples of the backbone's patch size {patch}");
                let field = view.map_or("recipe.size".into(), |view| format!("views.{view}.recipe.size"));
                return wrong(&field, &format!("{:?}", recipe.size), &expected);
            }
        }
        if self.train.pixel.is_some() && !self.views.is_empty() {
            return wrong("train.pixel", &"given", "left out with views: a mask lies on one scan");
        }
        if self.train.pooling != Pooling::Query && !self.views.is_empty() {
            let found = format!("{:?}", self.train.pooling.name());
            return wrong("train.pooling", &found, "\"query\" with views, which a query pools too");
        }
        if self.train.pixel.is_some() && self.train.pooling == Pooling::ThreePlanes {
            return wrong(
                "train.pixel",
                &"given",
                "left out with three planes, which a mask does not lie on",
            );
        }
        if self.loss == Loss::Ce && self.labels.len() < 2 {
            return wrong("loss", &"ce with one label", "focal or bce, or two labels or more");
        }
        if self.loss == Loss::Ordinal && self.labels.len() < 2 {
            return wrong("loss", &"ordinal with one label", "bce, or a label for each grade but the lowest");
        }
        if let Loss::Focal { gamma, alpha } = self.loss
            && !(gamma >= 0.0 && gamma.is_finite() && (0.0..=1.0).contains(&alpha))
        {
            return wrong("loss", &format!("gamma {gamma}, alpha {alpha}"), "gamma >= 0 and alpha in 0..1");
        }
        if let Rule::Sensitivity { at_least } | Rule::Specificity { at_least } = self.threshold
            && !(at_least > 0.0 && at_least <= 1.0)
        {
            return wrong("threshold.at_least", &at_least, "a share above 0 and at most 1");
        }
        if self.activation.is_some_and(|a| a != self.default_activation()) {
            return wrong("activation", &"at odds with the loss", "softmax with ce, sigmoid with the others");
        }
        if !(1..=1024).contains(&self.lora.rank) || !self.lora.alpha.is_finite() {
            return wrong("lora", &format!("{:?}", self.lora), "a rank of 1 to 1024 and a finite alpha");
        }
        if self.blocks == Some(0) {
            return wrong("blocks", &0, "at least 1");
        }
        self.train.validate()
    }

    /// A sentence where a label names a side of the body while a flip exchanges the sides.
    pub fn laterality_warning(&self) -> Option<String> {
        let side = |label: &&String| {
            let words = label.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
            words.into_iter().any(|word| word == "left" || word == "right")
        };
        let label = self.labels.iter().find(side)?;
        let planes = self.inputs().into_iter().map(|(_, recipe)| recipe.plane);
        let flip = planes.into_iter().find_map(|plane| self.train.augment.exchanges_sides(plane))?;
        Some(format!(
            "train.augment.{flip} exchanges left and right, which the label `{label}` tells apart; switch it off"
        ))
    }

    /// How logits become probabilities.
    pub fn activation(&self) -> Activation {
        self.activation.unwrap_or_else(|| self.default_activation())
    }

    fn default_activation(&self) -> Activation {
        if self.loss == Loss::Ce { Activation::Softmax } else { Activation::Sigmoid }
    }

    /// What the task looks at: each view's name and recipe, by name; one without a name where it has no views.
    pub fn inputs(&self) -> Vec<(Option<&str>, &Recipe)> {
        inputs(&self.recipe, &self.views)
    }

    /// Names of the views; none where the task has no views.
    pub fn view_names(&self) -> Vec<&str> {
        self.views.keys().map(String::as_str).collect()
    }

    /// Rank, scale and form of the factors, as a plugin has them.
    pub fn lora_spec(&self) -> LoraSpec {
        LoraSpec { rank: self.lora.rank, alpha: self.lora.alpha, attention: self.lora.attention }
    }
}

impl Train {
    fn validate(&self) -> Result<(), String> {
        for (field, value) in [("epochs", self.epochs), ("batch", self.batch), ("chunk", self.chunk)] {
            if value == 0 {
                return Err(format!("train.{field} is 0, but must be at least 1"));
            }
        }
        for (field, value) in [
            ("lr_lora", self.lr_lora),
            ("lr_head", self.lr_head),
            ("decay_lora", self.decay_lora),
            ("decay_head", self.decay_head),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("train.{field} is {value}, but must be a number of at least 0"));
            }
        }
        if let Some(clip) = self.clip.filter(|clip| !(*clip > 0.0 && clip.is_finite())) {
            return Err(format!("train.clip is {clip}, but must be a number above 0"));
        }
        if let Some(decay) = self.ema.filter(|decay| !(0.0..1.0).contains(decay)) {
            return Err(format!("train.ema is {decay}, but must be a decay from 0 to below 1"));
        }
        if let Some(Pixel { weight, .. }) = self.pixel.filter(|p| !(p.weight > 0.0 && p.weight.is_finite())) {
            return Err(format!("train.pixel.weight is {weight}, but must be a number above 0"));
        }
        if let Some(Pixel { width, .. }) = self.pixel.filter(|p| !(1..=1024).contains(&p.width)) {
            return Err(format!("train.pixel.width is {width}, but must be 1 to 1024"));
        }
        if self.patience == Some(0) {
            return Err("train.patience is 0, but must be at least 1".into());
        }
        if !(0.0..1.0).contains(&self.smoothing) {
            let found = self.smoothing;
            return Err(format!(
                "train.smoothing is {found}, but must be a share of the targets, 0 to below 1"
            ));
        }
        if !(0.0..1.0).contains(&self.warmup) {
            return Err(format!(
                "train.warmup is {}, but must be a share of all steps, 0 to below 1",
                self.warmup
            ));
        }
        self.augment.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "name = 'lesion'\nversion = '0.1.0'\nlabels = ['lesion']\n\
         recipe = { plane = 'axial', size = [28, 42], intensity = { kind = 'z-score' } }\n";

    fn task(more: &str) -> Result<Task, String> {
        let task: Task = toml::from_str(&format!("{LEAST}{more}")).map_err(|e| e.message().to_owned())?;
        task.validate(14).map(|()| task)
    }

    #[test]
    fn defaults_are_the_papers() {
        let (task, pixel) = (task("").unwrap(), task("[train.pixel]\n").unwrap());
        assert_eq!(task.loss, Loss::Focal { gamma: 2.0, alpha: 0.25 });
        assert_eq!(task.lora_spec(), LoraSpec { rank: 8, alpha: 16.0, attention: AttentionLora::Fused });
        assert_eq!((task.train.lr_lora, task.train.decay_lora), (1e-4, 1e-5));
        assert_eq!((task.train.lr_head, task.train.decay_head), (1e-3, 1e-4));
        assert_eq!((task.train.epochs, task.activation()), (100, Activation::Sigmoid));
        assert_eq!(task.train.pixel, None);
        assert_eq!(pixel.train.pixel, Some(Pixel { weight: 1.0, width: 32 }));
        for task in [task, pixel] {
            let back: Task = toml::from_str(&toml::to_string(&task).unwrap()).unwrap();
            assert_eq!(back, task);
        }
    }

    #[test]
    fn a_resolved_task_means_the_same_and_has_every_default() {
        let given = task("loss = { kind = 'focal' }\n[train]\nepochs = 7\n").unwrap();
        let text = given.resolved(Path::new("task.toml")).unwrap();
        for line in [
            "gamma = 2.0",
            "rank = 8",
            "epochs = 7",
            "lr_head = 0.001",
            "seed = 0",
            "kind = \"youden\"",
            "sampling = \"all\"",
            "pooling = \"query\"",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        let back: Task = toml::from_str(&text).unwrap();
        assert_eq!(back, given);
        assert_eq!(back.resolved(Path::new("task.toml")).unwrap(), text);
        let wrong = Task { labels: vec![], ..given };
        assert!(wrong.resolved(Path::new("task.toml")).unwrap_err().to_string().contains("labels is empty"));
    }

    #[test]
    fn wrong_values_and_unknown_keys_are_named() {
        for (more, told) in [
            ("rank = 8", "rank"),
            ("[train]\nlearning_rate = 1", "learning_rate"),
            ("[train]\nsampling = 'weighted'", "weighted"),
            ("[train]\npooling = 'max'", "max"),
            ("[views.a]\n[views.b]\n[train]\npooling = 'mean'", "train.pooling is \"mean\""),
            ("[train]\nbatch = 0", "train.batch is 0"),
            ("[train]\nlr_lora = -1", "train.lr_lora is -1"),
            ("[train]\nwarmup = 1.5", "train.warmup"),
            ("[train]\nclip = 0", "train.clip is 0"),
            ("[train]\nema = 1", "train.ema is 1"),
            ("[train]\npatience = 0", "train.patience is 0"),
            ("[train.pixel]\nweight = 0", "train.pixel.weight is 0"),
            ("[train.pixel]\nwidth = 0", "train.pixel.width is 0"),
            ("[train.pixel]\nlambda = 1", "lambda"),
            ("[train]\npooling = 'three-planes'\n[train.pixel]", "train.pixel is given"),
            ("[train]\nsmoothing = 1", "train.smoothing is 1"),
            ("[train]\naugment = { flip_rows = 2 }", "train.augment.flip_rows is 2"),
            ("[lora]\nrank = 0", "rank"),
            ("[lora]\ntargets = ['mlp']", "lora.targets has \"mlp\""),
            ("[lora]\ntargets = []", "lora.targets is empty"),
            ("loss = { kind = 'ce' }", "ce with one label"),
            ("loss = { kind = 'ordinal' }", "ordinal with one label"),
            ("activation = 'softmax'", "activation"),
            ("loss = { kind = 'focal', alpha = 2 }", "alpha 2"),
            ("blocks = 0", "blocks is 0"),
            ("threshold = { kind = 'specificity', at_least = 90 }", "threshold.at_least is 90"),
        ] {
            let error = task(more).unwrap_err();
            assert!(error.contains(told), "{more}: {error}");
        }
        let task = task("").unwrap();
        assert!(task.validate(16).unwrap_err().contains("multiples of the backbone's patch size 16"));
        let labels =
            |labels: &[&str]| Task { labels: labels.iter().map(|&l| l.into()).collect(), ..task.clone() };
        for bad in [&[][..], &["a", "a"], &["id"], &["logit:a"], &[""]] {
            assert!(labels(bad).validate(14).unwrap_err().starts_with("labels"), "{bad:?}");
        }
    }

    #[test]
    fn a_flip_that_exchanges_sides_is_told_where_a_label_names_one() {
        let warning = |label: &str, plane: &str, augment: &str| {
            let text = LEAST.replace("['lesion']", &format!("['{label}']")).replace("axial", plane);
            let task: Task = toml::from_str(&format!("{text}train = {{ augment = {augment} }}")).unwrap();
            task.laterality_warning()
        };
        let (paper, columns) = ("{ preset = 'paper' }", "{ flip_columns = true }");
        assert!(warning("Left kidney", "axial", columns).unwrap().contains("`Left kidney`"));
        assert!(warning("kidney_right", "sagittal", paper).unwrap().contains("flip_slices exchanges"));
        for (label, plane, augment) in [
            ("bright", "axial", paper),
            ("left", "sagittal", columns),
            ("left", "axial", "{ flip_rows = true }"),
        ] {
            assert_eq!(warning(label, plane, augment), None, "{label} {plane}");
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("task.toml");
        std::fs::write(&path, "name = 'x'\nversion = \n").unwrap();
        let error = Task::read(&path).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("line 2"), "{error}");
        assert!(Task::read(&folder.path().join("none.toml")).unwrap_err().is_bad_input());
    }
}
