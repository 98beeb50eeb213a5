//! A scan, or the scans of a task's views, through one task: recipe, engine, labels, provenance.
//!
//! Slices are prepared inside the engine's worker threads, each into the buffer that its encoder reads, so nothing of
//! the size of all slices is ever held. Where the recipe needs only the slice itself, [`LoadedTask::encode`] takes one at
//! a time, as they arrive, and [`LoadedTask::conclude`] says the same of them, bit for bit, as [`LoadedTask::classify`] of
//! the volume.

mod compose;
mod golden;
mod loader;
mod memory;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use firmware_config::device::Weights;
use firmware_config::{Manifest, MissingViews, TargetRef};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::engine::{EncodedSlice, EncodedView, Encoder, Engine, EngineError, Output};
use crate::plugin::Plugin;
use crate::recipe::Prepared;
use crate::result::{Completion, Kind, TaskResult};
use crate::tensor::sha256;
use crate::volume::Volume;

pub use compose::{BUILD, KEY_SLICES, PluginRef, Scan, SliceName, views_digest};
pub use golden::{GoldenReport, golden_peak, golden_weights};
pub use loader::Loader;
use loader::SharedBackbone;

/// A task ready to run.
pub struct LoadedTask {
    /// The plugin; its content is in the engine, and is not held again.
    pub plugin: Plugin,
    /// SHA-256 of the plugin file.
    pub plugin_sha256: String,
    /// The task graph, loaded.
    pub engine: Engine,
    /// SHA-256 of the task graph, equal to the one that the manifest names.
    pub graph_sha256: String,
    /// The signed target that the plugin came from; results of a plugin without one say that they are unsigned.
    pub target: Option<TargetRef>,
    /// Kept for the tasks that are loaded later.
    shared: Option<Arc<SharedBackbone>>,
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
    /// The task looks at several series, and not all are there.
    #[error(
        "task {task} looks at the views {views}, and there is no scan for {missing}; give each as VIEW=PATH"
    )]
    MissingViews {
        /// The task's name.
        task: String,
        /// Its views.
        views: String,
        /// Those that are missing.
        missing: String,
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
         export it again, with a wider tolerance if it is right on another machine of this kind"
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
    /// What kind of result it is to be.
    pub kind: Kind,
    /// How it was known that the scan is complete.
    pub completion: Completion,
    /// 0, or the number of late slices' revisions before.
    pub revision: u32,
    /// The result that it takes the place of.
    pub replaces: Option<String>,
}

impl Context {
    /// For a scan that a person or program named.
    pub fn given(device: String, created: SystemTime) -> Self {
        let (kind, completion) = (Kind::Final, Completion::Given);
        Self { device, created, kind, completion, revision: 0, replaces: None }
    }
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
        let other = |found, expected: &str| {
            let (graph, plugin, expected) = (graph.into(), plugin.into(), expected.into());
            Error::from(InferError::Graph { graph, plugin, found, expected })
        };
        let expected = &parsed.manifest.graph_sha256;
        let (model, found) = match crate::engine::read(graph) {
            // What is no graph at all is not the plugin's either.
            Err(EngineError::Graph { .. }) => {
                let io = |source| EngineError::Io { path: graph.into(), source };
                return Err(other(sha256(&std::fs::read(graph).map_err(io)?), expected));
            }
            read => read?,
        };
        // Checked before anything is made of it.
        if found != *expected {
            return Err(other(found, expected));
        }
        Self::of(parsed, plugin_sha256, Engine::of(model, threads)?, plugin)
    }

    /// Loads a plugin and merges it into its backbone in memory.
    pub fn merge(backbone: &Path, plugin: &Path, threads: usize) -> Result<Self, Error> {
        let (parsed, plugin_sha256) = Plugin::read(plugin)?;
        Loader::new(backbone, threads, Weights::Merged).load(parsed, plugin_sha256, plugin, backbone, false)
    }

    /// `engine` runs the graph that the manifest names.
    fn of(mut plugin: Plugin, plugin_sha256: String, engine: Engine, path: &Path) -> Result<Self, Error> {
        let graph_sha256 = plugin.manifest.graph_sha256.clone();
        let mismatch = |what, expected: String, found: String| {
            Error::from(InferError::Mismatch { plugin: path.into(), what, expected, found })
        };
        let Manifest { labels, .. } = &plugin.manifest;
        let inputs = plugin.manifest.inputs();
        let says = |names: Vec<Option<&str>>| {
            names.iter().map(|n| n.unwrap_or("one")).collect::<Vec<_>>().join(", ")
        };
        let [expected, found] = [
            inputs.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            engine.views().iter().map(|view| view.name.as_deref()).collect(),
        ];
        if expected != found {
            return Err(mismatch("views:", says(expected), says(found)));
        }
        for ((_, recipe), view) in inputs.iter().zip(engine.views()) {
            if recipe.size != view.size {
                let (expected, found) = (format!("{:?}", recipe.size), format!("{:?}", view.size));
                return Err(mismatch("slices of height and width", expected, found));
            }
        }
        if labels.len() != engine.classes() {
            return Err(mismatch("labels:", labels.len().to_string(), engine.classes().to_string()));
        }
        plugin.content.clear();
        memory::give_back();
        Ok(Self { plugin, plugin_sha256, engine, graph_sha256, target: None, shared: None })
    }

    /// Prepares a volume as the recipe of view number `view` asks; a task without views has one, number 0.
    pub fn prepare<'a>(&'a self, view: usize, volume: &'a Volume) -> Result<Prepared<'a>, Error> {
        Ok(Prepared::new(volume, self.plugin.manifest.inputs()[view].1)?)
    }

    /// [`Self::prepare`] of a volume for each view, in their order; `None` for one that is not there.
    pub fn prepare_views<'a>(
        &'a self,
        volumes: &[Option<&'a Volume>],
    ) -> Result<Vec<Option<Prepared<'a>>>, Error> {
        let of = |view: usize| volumes[view].map(|volume| self.prepare(view, volume)).transpose();
        (0..volumes.len()).map(of).collect()
    }

    /// Classifies volumes that [`Self::prepare`] prepared, an entry a view in the order of [`Manifest::inputs`]; `None` for one
    /// that is not there.
    ///
    /// `done` is called once a slice, from any of the engine's threads.
    pub fn classify(
        &self,
        prepared: &[Option<&Prepared<'_>>],
        context: &Context,
        done: &(dyn Fn() + Sync),
    ) -> Result<Classification, Error> {
        self.classify_while(prepared, context, &|| {
            done();
            true
        })
    }

    /// As [`Self::classify`]; `go_on` is asked before each slice, as by [`Engine::encode_while`].
    pub fn classify_while(
        &self,
        prepared: &[Option<&Prepared<'_>>],
        context: &Context,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Classification, Error> {
        self.check_views(prepared)?;
        let mut digests = Vec::new();
        let mut encode = |view: usize| {
            let Some(prepared) = prepared[view] else { return Ok(None) };
            let of_view = Mutex::new(vec![[0u8; 32]; prepared.slices()]);
            let write = |s: usize, out: &mut [f32]| {
                prepared.write_slice(s, out);
                let digest = slice_digest(out);
                of_view.lock().unwrap_or_else(PoisonError::into_inner)[s] = digest;
            };
            let encoded = self.engine.encode_while(view, prepared.slices(), &write, go_on)?;
            digests.extend(of_view.into_inner().unwrap_or_else(PoisonError::into_inner));
            Ok(Some(encoded))
        };
        let encoded = (0..prepared.len()).map(&mut encode).collect::<Result<Vec<_>, EngineError>>()?;
        let output = self.engine.pool(encoded)?;
        let scans: Vec<_> = prepared.iter().map(|prepared| prepared.map(Scan::of)).collect();
        self.said(&scans, context, output, &digests)
    }

    /// Before any work is done.
    fn check_views(&self, given: &[Option<&Prepared<'_>>]) -> Result<(), InferError> {
        let Manifest { task, missing_views, .. } = &self.plugin.manifest;
        let inputs = self.plugin.manifest.inputs();
        let named = |(name, _): &(Option<&str>, _)| name.unwrap_or("its scan").to_owned();
        let missing: Vec<String> = inputs
            .iter()
            .enumerate()
            .filter(|(view, _)| given.get(*view).is_none_or(Option::is_none))
            .map(|(_, input)| named(input))
            .collect();
        let enough = missing.len() < inputs.len() && *missing_views == MissingViews::Pool;
        if missing.is_empty() || enough {
            return Ok(());
        }
        let views = inputs.iter().map(named).collect::<Vec<_>>().join(", ");
        Err(InferError::MissingViews { task: task.name.clone(), views, missing: missing.join(", ") })
    }

    /// Prepares and encodes the only slice of `slice`, as a streamable recipe allows.
    pub fn encode(&self, encoder: &mut Encoder, slice: &Volume) -> Result<Encoded, Error> {
        let prepared = self.prepare(0, slice)?;
        let mut digest = [0; 32];
        let slice = encoder.encode(|out| {
            prepared.write_slice(0, out);
            digest = slice_digest(out);
        })?;
        Ok(Encoded { slice, digest })
    }

    /// Classifies a scan whose slices were encoded one by one, given in the order of `scan`'s.
    pub fn conclude(
        &self,
        scan: Scan<'_>,
        slices: &[&Encoded],
        context: &Context,
    ) -> Result<Classification, Error> {
        let parts =
            |part: &dyn Fn(&Encoded) -> &[f32]| slices.iter().flat_map(|s| part(s)).copied().collect();
        let embeddings: Vec<f32> = parts(&|s| &s.slice.embedding);
        let attention: Vec<f32> = parts(&|s| &s.slice.attention);
        let output = self.engine.pool(vec![Some(EncodedView { embeddings, attention })])?;
        let digests: Vec<[u8; 32]> = slices.iter().map(|s| s.digest).collect();
        self.said(&[Some(scan)], context, output, &digests)
    }

    /// What the engine has found, as a result.
    fn said(
        &self,
        scans: &[Option<Scan<'_>>],
        context: &Context,
        output: Output,
        digests: &[[u8; 32]],
    ) -> Result<Classification, Error> {
        if let Some(scan) = scans.iter().flatten().next() {
            self.check_finite(&scan.source.path, &output)?;
        }
        let result = self.result(scans, context, &output, sha256(digests.as_flattened()));
        Ok(Classification { result, output })
    }

    fn check_finite(&self, input: &Path, output: &Output) -> Result<(), InferError> {
        let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
        let weights = output.views.iter().all(|view| finite(&view.slice_weights));
        let what = match (finite(&output.logits), weights && finite(&output.view_weights)) {
            (true, true) => return Ok(()),
            (false, _) => "logits",
            (true, false) => "weights",
        };
        let task = self.plugin.manifest.task.name.clone();
        Err(InferError::NotFinite { task, what, input: input.to_owned() })
    }
}

/// A slice that was prepared and encoded by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// What the encoder says of it.
    pub slice: EncodedSlice,
    /// SHA-256 of what the network was given.
    pub digest: [u8; 32],
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
