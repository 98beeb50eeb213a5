//! Loads a task graph, cuts it at the slice embeddings, encodes slices in parallel and pools them: vision transformers by kernels of our own
//! ([`blocks`], see [`pack`]), everything else by tract.
//!
//! Pooling does not depend on the order of the slices, and each slice is encoded by itself (S = 1): a slice's embedding is the same bits
//! whether its volume is at hand or still arriving. Slices run in parallel, one single-threaded encoder a core over shared weights, which
//! scales better than threads that share a slice; those serve a volume of fewer slices than cores on a vision transformer. Either way the
//! bits are the same.
//!
//! tract's types appear in this module only.

mod encoder;
pub mod onnx;
mod pack;
mod translate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blocks::{Blocks, Factors, Isa};
pub use firmware_config::device::Precision;
use serde::{Deserialize, Serialize};
use tract_core::dims;
use tract_core::internal::DimLike;
use tract_core::prelude::*;

pub use self::encoder::{EncodedSlice, Encoder};
use self::encoder::{EncoderPlan, Fused};
use self::onnx::{ModelProto, ReadError};
use self::pack::{Layers, take_blocks};
use self::translate::Graph;

use crate::graph::{CLS_ATTENTION, VIEW_MASK, block_ends, of_view};
use crate::tensor::{Tensor as Weights, Tensors};

type Plan = Arc<TypedRunnableModel>;

/// A loaded task graph.
pub struct Engine {
    views: Vec<View>,
    pooling: Plan,
    /// Whether views may be missing.
    pools_what_is_there: bool,
    dim: usize,
    classes: usize,
    precision: Precision,
    mode: Mode,
    threads: usize,
}

/// Whether this machine has instructions for a precision; what has none is computed in single precision.
pub fn has_instructions_for(precision: Precision) -> bool {
    precision == Precision::F32 || pack::format(precision, Isa::here()).is_some()
}

/// How a task's factors meet the weights of its backbone. The two do not give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Merged into them: the task has weights of its own.
    Merged,
    /// Computed beside them: the weights serve all tasks on that backbone.
    Shared,
}

impl Mode {
    /// As results name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Shared => "shared",
        }
    }
}

/// The blocks of a backbone, packed, that no task's factors are merged into.
#[derive(Clone)]
pub(crate) struct SharedBlocks(Arc<Blocks>);

/// Layers that [`SharedBlocks`] of one backbone, of any number of blocks and any size of slices, have in common.
#[derive(Default)]
pub(crate) struct SharedLayers(Layers);

impl SharedLayers {
    /// Packs the blocks of a graph that [`crate::graph::blocks_model`] wrote; `None` if they are none that can be shared here.
    pub(crate) fn pack(&mut self, mut blocks: ModelProto, precision: Precision) -> Option<SharedBlocks> {
        let stacks = take_blocks(precision, blocks.graph.as_mut()?, &mut self.0);
        let (_, blocks) = stacks.into_iter().next()?;
        Some(SharedBlocks(Arc::new(blocks)))
    }
}

/// One of a task's inputs; most tasks have one.
pub struct View {
    /// Its name; none where the task has one view.
    pub name: Option<String>,
    /// Height and width of a slice, in pixels.
    pub size: [usize; 2],
    /// Patches along height and width.
    pub grid: [usize; 2],
    encoder: EncoderPlan,
}

/// What a task graph says of one study.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[C]`.
    pub logits: Vec<f32>,
    /// `[V]`, sums to 1; of a view that was not given, 0.
    pub view_weights: Vec<f32>,
    /// `[V]`, in the order of [`Engine::views`].
    pub views: Vec<ViewOutput>,
}

/// What a task graph says of one view's volume; nothing of one that was not given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ViewOutput {
    /// `[S]`, sums to 1.
    pub slice_weights: Vec<f32>,
    /// `[S, gh, gw]`: last-block attention from CLS to the patches, mean over heads, times the slice's weight.
    pub heatmap: Vec<f32>,
    /// `[S, d]`.
    pub embeddings: Vec<f32>,
}

/// The encoded slices of a view, to be pooled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EncodedView {
    /// `[S, d]`.
    pub embeddings: Vec<f32>,
    /// `[S, N]`.
    pub attention: Vec<f32>,
}

/// How results were computed; part of a result's provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Instruction set that the kernels were chosen for.
    pub isa: String,
    /// What computes, with versions.
    pub kernels: String,
    /// Arithmetic of the encoder.
    pub precision: Precision,
    /// How the factors meet the weights.
    pub mode: Mode,
    /// Threads: slices encoded at a time, or, of a volume of fewer slices, split among them.
    pub threads: usize,
}

/// What computes: the number of [`blocks`] goes up whenever it gives other bits.
const KERNELS: &str = "scanside 1, tract 0.23.9";

impl EngineInfo {
    /// Of an engine of so many threads on this machine.
    pub fn here(precision: Precision, mode: Mode, threads: usize) -> Self {
        Self { isa: isa(), kernels: KERNELS.into(), precision, mode, threads }
    }
}

/// Why a graph could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The graph file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// Not a task graph of this product.
    #[error("the graph is not a scanside task graph ({detail}); export or merge it again")]
    Graph {
        /// What is missing or wrong.
        detail: String,
    },
    /// Not all views were given, and the task does not do without.
    #[error("the task needs all of its views, and there is none for {missing}; give a scan for each")]
    Views {
        /// The views that are missing.
        missing: String,
    },
    /// No slices were given.
    #[error("a volume of no slices cannot be classified; give at least one slice")]
    Empty,
    /// Whoever asked for the work did not want it any more.
    #[error("the inference was stopped before its end; start it again")]
    Stopped,
    /// tract failed while running a sound graph.
    #[error("the inference engine failed on this machine ({detail}); report it with the graph's SHA-256")]
    Run {
        /// tract's words.
        detail: String,
    },
}

impl EngineError {
    /// Whether the user's file or flag is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::files::names_no_file(source),
            Self::Graph { .. } | Self::Views { .. } | Self::Empty => true,
            Self::Stopped | Self::Run { .. } => false,
        }
    }
}

/// Reads a task graph, with its SHA-256.
pub(crate) fn read(path: &Path) -> Result<(ModelProto, String), EngineError> {
    onnx::read(path).map_err(|error| match error {
        ReadError::Io(source) => EngineError::Io { path: path.into(), source },
        error @ ReadError::Malformed(_) => unusable(error),
    })
}

fn unusable(detail: impl std::fmt::Display) -> EngineError {
    EngineError::Graph { detail: detail.to_string() }
}

fn unusable_as(error: &TractError) -> EngineError {
    unusable(sentence(error))
}

fn failed(error: &TractError) -> EngineError {
    EngineError::Run { detail: sentence(error) }
}

/// The chain of causes, each on no line of its own.
fn sentence(error: &TractError) -> String {
    format!("{error:#}").replace('\n', " ")
}

/// As many slices at a time as the machine has cores.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Engine {
    /// Reads a task graph; returns the engine and the file's SHA-256, taken over the very bytes that were loaded.
    pub fn open(path: &Path, threads: usize) -> Result<(Self, String), EngineError> {
        let (model, digest) = read(path)?;
        Ok((Self::of(model, threads)?, digest))
    }

    /// Loads a task graph.
    pub fn load(graph: &[u8], threads: usize) -> Result<Self, EngineError> {
        Self::of(onnx::decode(graph).map_err(unusable)?, threads)
    }

    /// An engine for a task graph, in single precision.
    pub fn of(proto: ModelProto, threads: usize) -> Result<Self, EngineError> {
        Self::of_precision(proto, Precision::F32, threads)
    }

    /// An engine for a task graph, in that precision where that can be. Each of its weights is dropped when it has been packed, so that
    /// they are held once.
    pub fn of_precision(
        mut proto: ModelProto,
        precision: Precision,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let take = |graph| take_blocks(precision, graph, &mut Layers::default());
        let stacks = proto.graph.as_mut().map(take).unwrap_or_default();
        let fused = stacks.into_iter().map(|(stack, blocks)| {
            let ends = stack.ends().map(str::to_owned).collect();
            Fused { slices: stack.input, ends, blocks }
        });
        Self::assemble(proto, fused.collect(), precision, Mode::Merged, threads)
    }

    /// An engine whose views are encoded by shared weights, each with factors beside them; `after` is what comes after the blocks, see
    /// [`crate::graph::after_blocks`].
    pub(crate) fn beside(
        after: ModelProto,
        views: Vec<(String, SharedBlocks, Factors)>,
        precision: Precision,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let fused = views.into_iter().map(|(slices, shared, factors)| {
            let blocks = shared.0.beside(&factors);
            let ends = block_ends(&slices).into_iter().take(blocks.shapes().len()).collect();
            Fused { slices, ends, blocks }
        });
        Self::assemble(after, fused.collect(), precision, Mode::Shared, threads)
    }

    fn assemble(
        proto: ModelProto,
        mut fused: Vec<Fused>,
        precision: Precision,
        mode: Mode,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let graph = Graph::new(proto).map_err(|e| unusable_as(&e))?;
        let mask = graph.inputs.iter().find(|(name, _)| name == VIEW_MASK);
        // What tract computes is computed in single precision.
        let precision =
            if has_instructions_for(precision) && !fused.is_empty() { precision } else { Precision::F32 };
        let within: Vec<String> = fused.iter().flat_map(|fused| fused.ends.clone()).collect();
        let mut views = Vec::new();
        let (mut cuts, mut ends) = (Vec::new(), vec!["logits".to_owned()]);
        for (name, shape) in &graph.inputs {
            if name == VIEW_MASK || within.contains(name) {
                continue;
            }
            let view = match name.strip_prefix("slices") {
                Some("") => None,
                Some(view) if view.starts_with('_') => Some(view[1..].to_owned()),
                _ => return Err(unusable(format!("an input named {name}, which is not slices"))),
            };
            let of = |part: &str| view.as_ref().map_or(part.to_owned(), |view| of_view(part, view));
            let cut = [of("slice_embeddings"), of(CLS_ATTENTION)];
            ends.extend([of("slice_weights"), of("heatmap")]);
            let own = fused.iter().position(|fused| fused.slices == *name);
            let plan = EncoderPlan::new(&graph, name, shape, &cut, own.map(|n| fused.swap_remove(n)))?;
            cuts.extend(cut.into_iter().zip([plan.dim, plan.patches]));
            views.push(View { name: view, size: plan.size, grid: [0, 0], encoder: plan });
        }
        let Some(&(_, dim)) = cuts.first() else { return Err(unusable("it has no input")) };
        if views.len() > 1 {
            ends.push("view_weights".to_owned());
        }

        let inputs = cuts.iter().enumerate().map(|(k, (name, width))| {
            let rows = graph.symbol(&format!("S{}", k / 2));
            (name.as_str(), dims!(rows, *width))
        });
        let pools_what_is_there = mask.is_some();
        let mask = mask.map(|(name, _)| (name.as_str(), dims!(views.len())));
        let inputs: Vec<_> = inputs.chain(mask).collect();
        let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
        let pooling = graph.part(&inputs, &ends).map_err(|e| unusable_as(&e))?;
        let known = |d: &TDim| d.to_usize().map_err(unusable);
        let classes = known(&pooling.output_fact(0).map_err(unusable)?.shape[0])?;
        for (k, view) in views.iter_mut().enumerate() {
            let heat = pooling.output_fact(2 * k + 2).map_err(unusable)?.shape.to_tvec();
            view.grid = match heat.as_slice() {
                [_, gh, gw] => [known(gh)?, known(gw)?],
                _ => return Err(unusable("heatmap is not [S, gh, gw]")),
            };
        }
        let pooling = plan(pooling)?;
        let threads = threads.max(1);
        Ok(Self { views, pooling, pools_what_is_there, dim, classes, precision, mode, threads })
    }

    /// The task's inputs, at least one, in the graph's order.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// Width d of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of logits.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How this engine computes.
    pub fn info(&self) -> EngineInfo {
        EngineInfo::here(self.precision, self.mode, self.threads)
    }

    /// Runs `slices` slices of a task of one view; `write_slice(s, out)` fills `out` `[3, H, W]` with slice `s`, from any thread.
    pub fn run(
        &self,
        slices: usize,
        write_slice: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<Output, EngineError> {
        self.pool(vec![Some(self.encode(0, slices, write_slice)?)])
    }

    /// Encodes `slices` slices of view number `view`; as [`Self::run`].
    pub fn encode(
        &self,
        view: usize,
        slices: usize,
        write_slice: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<EncodedView, EngineError> {
        self.encode_while(view, slices, write_slice, &|| true)
    }

    /// As [`Self::encode`]. `go_on` is asked before each slice, from the thread that is to encode it: it may wait, and ends the
    /// work with [`EngineError::Stopped`] where it says no.
    pub fn encode_while(
        &self,
        view: usize,
        slices: usize,
        write_slice: &(dyn Fn(usize, &mut [f32]) + Sync),
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<EncodedView, EngineError> {
        if slices == 0 {
            return Err(EngineError::Empty);
        }
        let patches = self.views[view].patches();
        let workers = self.threads.min(slices);
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, EncodedSlice)>, EngineError> {
            let mut encoder = self.encoder(view, self.threads / workers)?;
            let mut done = Vec::new();
            loop {
                let s = next.fetch_add(1, Ordering::Relaxed);
                if s >= slices {
                    return Ok(done);
                }
                if !go_on() {
                    return Err(EngineError::Stopped);
                }
                done.push((s, encoder.encode(|out| write_slice(s, out))?));
            }
        };
        let parts = std::thread::scope(|scope| {
            let handles: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut parts = vec![work()];
            parts.extend(handles.into_iter().map(|h| {
                h.join()
                    .unwrap_or_else(|_| Err(EngineError::Run { detail: "a worker thread panicked".into() }))
            }));
            parts.into_iter().collect::<Result<Vec<_>, _>>()
        })?;
        let mut embeddings = vec![0.0; slices * self.dim];
        let mut attention = vec![0.0; slices * patches];
        for (s, encoded) in parts.into_iter().flatten() {
            embeddings[s * self.dim..][..self.dim].copy_from_slice(&encoded.embedding);
            attention[s * patches..][..patches].copy_from_slice(&encoded.attention);
        }
        Ok(EncodedView { embeddings, attention })
    }

    /// An encoder over the shared weights of view number `view` that splits each slice's work among `threads` threads, where a vision
    /// transformer does it; their number does not change a bit of what it computes.
    pub fn encoder(&self, view: usize, threads: usize) -> Result<Encoder, EngineError> {
        let view = &self.views[view];
        Encoder::new(&view.encoder, threads)
    }

    /// Pools each view's slices, then the views, and applies the head. `encoded` has an entry a view, in the order of
    /// [`Self::views`]; a view that is not given is allowed where the task pools what is there.
    pub fn pool(&self, encoded: Vec<Option<EncodedView>>) -> Result<Output, EngineError> {
        let given: Vec<bool> = encoded.iter().map(Option::is_some).collect();
        let names = self.views.iter().zip(&given);
        let missing: Vec<&str> =
            names.filter(|(_, given)| !**given).map(|(v, _)| v.name.as_deref().unwrap_or("")).collect();
        let none = missing.len() == self.views.len();
        if given.len() != self.views.len() || none || !(missing.is_empty() || self.pools_what_is_there) {
            return Err(EngineError::Views { missing: missing.join(", ") });
        }
        let mut inputs = tvec![];
        let mut embeddings = Vec::new();
        for (view, encoded) in self.views.iter().zip(encoded) {
            // A view that is not given has one slice of zeros, to which the mask gives no weight.
            let rows = encoded.unwrap_or_else(|| EncodedView {
                embeddings: vec![0.0; self.dim],
                attention: vec![0.0; view.patches()],
            });
            let slices = rows.embeddings.len() / self.dim;
            if slices == 0 {
                return Err(EngineError::Empty);
            }
            for (values, width) in [(&rows.embeddings, self.dim), (&rows.attention, view.patches())] {
                inputs.push(Tensor::from_shape(&[slices, width], values).map_err(|e| failed(&e))?.into());
            }
            embeddings.push(rows.embeddings);
        }
        if self.pools_what_is_there {
            let mask: Vec<f32> = given.iter().map(|&given| f32::from(u8::from(given))).collect();
            inputs.push(Tensor::from_shape(&[mask.len()], &mask).map_err(|e| failed(&e))?.into());
        }
        let out = self.pooling.run(inputs).map_err(|e| failed(&e))?;
        let mut views = Vec::new();
        for ((k, given), embeddings) in given.into_iter().enumerate().zip(embeddings) {
            let [slice_weights, heatmap] = [values(&out[2 * k + 1])?, values(&out[2 * k + 2])?];
            views.push(if given {
                ViewOutput { slice_weights, heatmap, embeddings }
            } else {
                ViewOutput::default()
            });
        }
        let view_weights = out.get(2 * views.len() + 1).map_or(Ok(vec![1.0]), |weights| values(weights))?;
        Ok(Output { logits: values(&out[0])?, view_weights, views })
    }
}

impl View {
    fn patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }
}

/// Runs any graph with one input on `input`, all slices at once, and returns its outputs by name: for looking at a
/// backbone, not for the device's work.
pub fn run_graph(graph: Vec<u8>, input: &Weights) -> Result<Tensors, EngineError> {
    let proto = onnx::decode(&graph).map_err(unusable)?;
    drop(graph);
    let graph = Graph::new(proto).map_err(|e| unusable_as(&e))?;
    let [(name, _)] = graph.inputs.as_slice() else { return Err(unusable("it has not one input")) };
    let shape = input.shape.as_slice().into();
    let names: Vec<&str> = graph.outputs.iter().map(String::as_str).collect();
    let plan = plan(graph.part(&[(name, shape)], &names).map_err(|e| unusable_as(&e))?)?;
    let input = Tensor::from_shape(&input.shape, &input.data).map_err(|e| failed(&e))?;
    let out = plan.run(tvec![input.into()]).map_err(|e| failed(&e))?;
    names
        .into_iter()
        .zip(out)
        .map(|(n, t)| Ok((n.to_owned(), Weights::new(t.shape().to_vec(), values(&t)?))))
        .collect()
}

fn plan(model: TypedModel) -> Result<Plan, EngineError> {
    model
        .into_decluttered()
        .and_then(TypedModel::into_optimized)
        .and_then(TypedModel::into_runnable)
        .map_err(|e| failed(&e))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, EngineError> {
    let plain = tensor.try_as_plain_ram().map_err(|e| failed(&e))?;
    Ok(plain.as_slice::<f32>().map_err(|e| failed(&e))?.to_vec())
}

/// The architecture and the widest vector extension that the kernels can use here.
pub fn isa() -> String {
    #[cfg(target_arch = "x86_64")]
    let extension = if std::is_x86_feature_detected!("avx512f") {
        "+avx512f"
    } else if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        "+avx2+fma"
    } else {
        ""
    };
    #[cfg(target_arch = "aarch64")]
    let extension = if std::arch::is_aarch64_feature_detected!("fp16") { "+neon+fp16" } else { "+neon" };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let extension = "";
    format!("{}{extension}", std::env::consts::ARCH)
}
