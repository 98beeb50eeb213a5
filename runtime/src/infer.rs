//! One volume through one task: recipe, engine, labels, provenance.
//!
//! Slices are prepared inside the engine's worker threads, each into the buffer that its encoder reads, so nothing of
//! the size of all slices is ever held.

mod golden;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use firmware_config::Manifest;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::backbone::Backbone;
use crate::engine::{Engine, EngineError, Output};
use crate::plugin::Plugin;
use crate::recipe::Prepared;
use crate::result::{
    Completion, INTENDED_USE, Input, KeySlice, Kind, LabelResult, Provenance, SCHEMA, TaskResult, Trust,
    result_id, rfc3339,
};
use crate::tensor::sha256;
use crate::volume::Volume;

pub use golden::GoldenReport;

/// How many slices a result names.
pub const KEY_SLICES: usize = 5;

/// A task ready to run.
pub struct LoadedTask {
    /// The plugin.
    pub plugin: Plugin,
    /// SHA-256 of the plugin file.
    pub plugin_sha256: String,
    /// The task graph, loaded.
    pub engine: Engine,
    /// SHA-256 of the task graph, equal to the one that the manifest names.
    pub graph_sha256: String,
}

/// Why a task could not be loaded or run, beyond what its parts say.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The graph file is not the one that the manifest names.
    #[error(
        "{} has SHA-256 {found}, but {} names the task graph {expected}; take the graph exported with this plugin, \
         or build it with `scanside merge`", graph.display(), plugin.display()
    )]
    Graph {
        /// The graph file.
        graph: PathBuf,
        /// The plugin file.
        plugin: PathBuf,
        /// SHA-256 of the graph file.
        found: String,
        /// SHA-256 in the manifest.
        expected: String,
    },
    /// Manifest and graph disagree although the manifest names the graph.
    #[error(
        "{} says {what} {expected}, but its task graph has {found}; the plugin was written by a faulty tool",
        plugin.display()
    )]
    Mismatch {
        /// The plugin file.
        plugin: PathBuf,
        /// What they disagree on.
        what: &'static str,
        /// The manifest's.
        expected: String,
        /// The graph's.
        found: String,
    },
    /// A logit or weight is no number.
    #[error("task {task} gives {what} that are not finite for {}; such a result is not passed on", input.display())]
    NotFinite {
        /// The task's name.
        task: String,
        /// What is not finite.
        what: &'static str,
        /// The scan.
        input: PathBuf,
    },
    /// A plugin without golden cases is to go live.
    #[error(
        "the plugin of task {task} has no golden cases, so it cannot be checked on this machine; export it again"
    )]
    NoGolden {
        /// The task's name.
        task: String,
    },
    /// A golden case is not reproduced.
    #[error(
        "task {task} does not do on this machine what it did where it was exported: in golden case {case}, {detail}; \
         it does not go live"
    )]
    Golden {
        /// The task's name.
        task: String,
        /// The case's name.
        case: String,
        /// What differs.
        detail: String,
    },
}

impl InferError {
    /// Whether the user's file is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Golden { .. })
    }
}

/// What a result states that does not follow from scan and task.
#[derive(Debug, Clone)]
pub struct Context {
    /// The device's name.
    pub device: String,
    /// The present time.
    pub created: SystemTime,
}

/// What a task says of a volume.
#[derive(Debug)]
pub struct Classification {
    /// For the reader; `timings_ms` is left empty, since this module knows no clock.
    pub result: TaskResult,
    /// For pictures and comparisons.
    pub output: Output,
}

impl LoadedTask {
    /// Loads a plugin and the task graph that was exported with it.
    pub fn open(graph: &Path, plugin: &Path, threads: usize) -> Result<Self, Error> {
        let (parsed, plugin_sha256) = Plugin::read(plugin)?;
        let bytes = std::fs::read(graph).map_err(|source| EngineError::Io { path: graph.into(), source })?;
        let found = sha256(&bytes);
        // Checked before anything looks into the file.
        if found != parsed.manifest.graph_sha256 {
            let expected = parsed.manifest.graph_sha256;
            return Err(
                InferError::Graph { graph: graph.into(), plugin: plugin.into(), found, expected }.into()
            );
        }
        Self::load(parsed, plugin_sha256, bytes, found, plugin, threads)
    }

    /// Loads a plugin and merges it into its backbone in memory.
    pub fn merge(backbone: &Path, plugin: &Path, threads: usize) -> Result<Self, Error> {
        let (parsed, plugin_sha256) = Plugin::read(plugin)?;
        let bytes = parsed.graph(Backbone::open(backbone)?)?;
        let graph_sha256 = parsed.manifest.graph_sha256.clone();
        Self::load(parsed, plugin_sha256, bytes, graph_sha256, plugin, threads)
    }

    fn load(
        plugin: Plugin,
        plugin_sha256: String,
        graph: Vec<u8>,
        graph_sha256: String,
        path: &Path,
        threads: usize,
    ) -> Result<Self, Error> {
        let engine = Engine::load(graph, threads)?;
        let mismatch = |what, expected: String, found: String| {
            Error::from(InferError::Mismatch { plugin: path.into(), what, expected, found })
        };
        let Manifest { recipe, labels, .. } = &plugin.manifest;
        if recipe.size != engine.size() {
            let (expected, found) = (format!("{:?}", recipe.size), format!("{:?}", engine.size()));
            return Err(mismatch("slices of height and width", expected, found));
        }
        if labels.len() != engine.classes() {
            return Err(mismatch("labels:", labels.len().to_string(), engine.classes().to_string()));
        }
        Ok(Self { plugin, plugin_sha256, engine, graph_sha256 })
    }

    /// Prepares a volume as the plugin's recipe asks.
    pub fn prepare<'a>(&'a self, volume: &'a Volume) -> Result<Prepared<'a>, Error> {
        Ok(Prepared::new(volume, &self.plugin.manifest.recipe)?)
    }

    /// Classifies a volume that [`Self::prepare`] prepared.
    ///
    /// `observe(s, slice)` sees each slice `[3, H, W]` as the network is given it, in any order and from any of the
    /// engine's threads.
    pub fn classify(
        &self,
        prepared: &Prepared<'_>,
        context: &Context,
        observe: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<Classification, Error> {
        let digests = Mutex::new(vec![[0u8; 32]; prepared.slices()]);
        let output = self.engine.run(prepared.slices(), &|s, out| {
            prepared.write_slice(s, out);
            let digest = slice_digest(out);
            digests.lock().unwrap_or_else(PoisonError::into_inner)[s] = digest;
            observe(s, out);
        })?;
        let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.check_finite(prepared.volume(), &output)?;
        let result = self.result(prepared, context, &output, sha256(digests.as_flattened()));
        Ok(Classification { result, output })
    }

    fn check_finite(&self, volume: &Volume, output: &Output) -> Result<(), InferError> {
        let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
        let what = match (finite(&output.logits), finite(&output.slice_weights)) {
            (true, true) => return Ok(()),
            (false, _) => "logits",
            (true, false) => "slice weights",
        };
        let task = self.plugin.manifest.task.name.clone();
        Err(InferError::NotFinite { task, what, input: volume.source.path.clone() })
    }

    fn result(
        &self,
        prepared: &Prepared<'_>,
        context: &Context,
        output: &Output,
        tensor_sha256: String,
    ) -> TaskResult {
        let (manifest, volume) = (&self.plugin.manifest, prepared.volume());
        let source = &volume.source;
        let (kind, revision) = (Kind::Final, 0);
        TaskResult {
            schema: SCHEMA.into(),
            result_id: result_id(
                &context.device,
                &manifest.task.name,
                &self.plugin_sha256,
                &source.digest,
                kind,
                revision,
            ),
            kind,
            is_final: kind == Kind::Final,
            revision,
            replaces: None,
            created: rfc3339(context.created),
            intended_use: INTENDED_USE.into(),
            trust: Trust::Unsigned,
            device: context.device.clone(),
            task: manifest.task.clone(),
            input: Input {
                kind: source.kind,
                study_uid: source.study_uid.clone(),
                series_uid: source.series_uid.clone(),
                instances: source.instance_count(),
                digest: source.digest.clone(),
                completion: Completion::Given,
            },
            labels: labels(manifest, &output.logits),
            key_slices: key_slices(prepared, &output.slice_weights),
            timings_ms: std::collections::BTreeMap::new(),
            provenance: self.provenance(tensor_sha256),
            warnings: warnings(manifest, volume),
        }
    }

    fn provenance(&self, tensor_sha256: String) -> Provenance {
        let manifest = &self.plugin.manifest;
        let recipe = serde_json::to_vec(&manifest.recipe).expect("plain data serialises");
        let mut provenance = Provenance {
            backbone_sha256: manifest.backbone.sha256.clone(),
            plugin_sha256: self.plugin_sha256.clone(),
            graph_sha256: self.graph_sha256.clone(),
            recipe_sha256: sha256(&recipe),
            tensor_sha256,
            engine: self.engine.info(),
            build: concat!("scanside ", env!("CARGO_PKG_VERSION")).into(),
            digest: String::new(),
        };
        provenance.digest = provenance.compute_digest();
        provenance
    }
}

/// SHA-256 of a slice's values, little-endian.
fn slice_digest(slice: &[f32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut block = [0u8; 4096];
    for values in slice.chunks(block.len() / 4) {
        for (bytes, value) in block.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        hash.update(&block[..4 * values.len()]);
    }
    hash.finalize().into()
}

fn labels(manifest: &Manifest, logits: &[f32]) -> Vec<LabelResult> {
    let probabilities = manifest.activation.probabilities(logits, manifest.temperature);
    let all = manifest.labels.iter().zip(logits).zip(probabilities);
    all.map(|((label, &logit), probability)| {
        let threshold = label.threshold.as_ref().map(|t| t.probability);
        LabelResult {
            name: label.name.clone(),
            logit,
            probability,
            threshold,
            positive: threshold.map(|t| probability >= t),
        }
    })
    .collect()
}

/// The heaviest slices; of equally heavy ones the first.
fn key_slices(prepared: &Prepared<'_>, weights: &[f32]) -> Vec<KeySlice> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let name = |s: usize| KeySlice {
        index: prepared.slice_index(s),
        sop_instance_uid: prepared.instance(s).map(str::to_owned),
        frame_number: prepared.frame_number(s),
        weight: weights[s],
    };
    order.into_iter().take(KEY_SLICES).map(name).collect()
}

fn warnings(manifest: &Manifest, volume: &Volume) -> Vec<String> {
    let mut out = volume.warnings.clone();
    match &manifest.accepts {
        Some(accepts) => {
            let refusals = accepts.refusals(&volume.observed());
            out.extend(
                refusals
                    .into_iter()
                    .map(|why| format!("the plugin's manifest does not accept this scan: {why}")),
            );
        }
        None => out.push("the plugin's manifest does not say which scans it accepts".into()),
    }
    out
}
