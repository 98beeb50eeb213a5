//! tract: loads a task graph, cuts it at the slice embeddings, encodes slices in parallel and pools them.
//!
//! Pooling does not depend on the order of the slices, and each slice is encoded by itself (S = 1): a slice's
//! embedding is the same bits whether its volume is at hand or still arriving. Slices run in parallel, one
//! single-threaded state a core over one shared plan, which scales better than threads inside an operator; those
//! serve a volume of fewer slices than cores. Either way the bits are the same.
//!
//! tract's types appear in this module only.

pub mod onnx;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::{DimLike, Factoid};

use self::multithread::{Executor, multithread_tract_scope};
use self::plan::{Plan, plan};

use crate::graph::CLS_ATTENTION;
use crate::tensor::{Tensor as Weights, Tensors, sha256};

/// A loaded task graph.
pub struct Engine {
    encoder: Plan,
    pooling: Plan,
    size: [usize; 2],
    grid: [usize; 2],
    dim: usize,
    classes: usize,
    threads: usize,
}

/// What a task graph says of one volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[C]`.
    pub logits: Vec<f32>,
    /// `[S]`, sums to 1.
    pub slice_weights: Vec<f32>,
    /// `[S, gh, gw]`: last-block attention from CLS to the patches, mean over heads, times the slice's weight.
    pub heatmap: Vec<f32>,
    /// `[S, d]`.
    pub embeddings: Vec<f32>,
}

/// How results were computed; part of a result's provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Instruction set that the kernels were chosen for.
    pub isa: String,
    /// The library and its version.
    pub kernels: String,
    /// Arithmetic of the encoder.
    pub precision: String,
    /// `merged`: factors merged into the weights.
    pub mode: String,
    /// Threads: slices encoded at a time, or, of a volume of fewer slices, split among them.
    pub threads: usize,
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
    /// No slices were given.
    #[error("a volume of no slices cannot be classified; give at least one slice")]
    Empty,
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
            Self::Graph { .. } | Self::Empty => true,
            Self::Run { .. } => false,
        }
    }
}

fn unusable(detail: impl std::fmt::Display) -> EngineError {
    EngineError::Graph { detail: detail.to_string() }
}

fn failed(error: &TractError) -> EngineError {
    // One sentence: the chain of causes, each on no line of its own.
    EngineError::Run { detail: format!("{error:#}").replace('\n', " ") }
}

/// As many slices at a time as the machine has cores.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Engine {
    /// Reads a task graph; returns the engine and the file's SHA-256, taken over the very bytes that were loaded.
    pub fn open(path: &Path, threads: usize) -> Result<(Self, String), EngineError> {
        let bytes = std::fs::read(path).map_err(|source| EngineError::Io { path: path.into(), source })?;
        let digest = sha256(&bytes);
        Ok((Self::load(bytes, threads)?, digest))
    }

    /// Loads a task graph. The bytes are dropped as soon as they are decoded, so that the weights are held at
    /// most twice: as read and as packed for the kernels.
    pub fn load(graph: Vec<u8>, threads: usize) -> Result<Self, EngineError> {
        let proto = onnx::decode(&graph).map_err(unusable)?;
        drop(graph);
        let model =
            tract_onnx::onnx().model_for_proto_model(&proto).map_err(|e| unusable(format!("{e:#}")))?;
        drop(proto);

        let fact =
            model.input_fact(0).map_err(unusable)?.shape.dims().map(Factoid::concretize).collect::<Vec<_>>();
        let [_, Some(channels), Some(height), Some(width)] = fact.as_slice() else {
            return Err(unusable("its input is not slices [S, 3, H, W]"));
        };
        let known = |d: &TDim| d.to_usize().map_err(unusable);
        let size = [known(height)?, known(width)?];
        if known(channels)? != 3 {
            return Err(unusable("its slices do not have three channels"));
        }
        let outlet =
            |name: &str| model.find_outlet_label(name).ok_or_else(|| unusable(format!("no tensor {name}")));
        let (embeddings, attention) = (outlet("slice_embeddings")?, outlet(CLS_ATTENTION)?);
        let ends = [outlet("logits")?, outlet("slice_weights")?, outlet("heatmap")?];

        let mut pooling = model.clone();
        let mut encoder = model;
        encoder.select_output_outlets(&[embeddings, attention]).map_err(unusable)?;
        encoder.set_input_fact(0, f32::fact([1, 3, size[0], size[1]]).into()).map_err(unusable)?;
        let encoder = encoder.into_typed().map_err(|e| unusable(format!("{e:#}")))?;
        let shape = |k: usize| -> Result<Vec<usize>, EngineError> {
            let fact = encoder.output_fact(k).map_err(unusable)?;
            fact.shape
                .as_concrete()
                .map(<[usize]>::to_vec)
                .ok_or_else(|| unusable("an output of unknown shape"))
        };
        let (&[1, dim], &[1, patches]) = (shape(0)?.as_slice(), shape(1)?.as_slice()) else {
            return Err(unusable("slice_embeddings or cls_attention of an unexpected shape"));
        };
        let encoder = plan(encoder)?;

        pooling.set_input_outlets(&[embeddings, attention]).map_err(unusable)?;
        pooling.select_output_outlets(&ends).map_err(unusable)?;
        let s = TDim::from(pooling.symbols.sym("S"));
        let rows = |n: usize| InferenceFact::dt_shape(f32::datum_type(), tvec![s.clone(), n.to_dim()]);
        pooling.set_input_fact(0, rows(dim)).map_err(unusable)?;
        pooling.set_input_fact(1, rows(patches)).map_err(unusable)?;
        let pooling = pooling.into_typed().map_err(|e| unusable(format!("{e:#}")))?;
        let classes = pooling.output_fact(0).map_err(unusable)?.shape[0].to_usize().map_err(unusable)?;
        let heat = pooling.output_fact(2).map_err(unusable)?.shape.to_tvec();
        let grid = match heat.as_slice() {
            [_, gh, gw] => [known(gh)?, known(gw)?],
            _ => return Err(unusable("heatmap is not [S, gh, gw]")),
        };
        let pooling = plan(pooling)?;
        Ok(Self { encoder, pooling, size, grid, dim, classes, threads: threads.max(1) })
    }

    /// Height and width of a slice, in pixels.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Patches along height and width.
    pub fn grid(&self) -> [usize; 2] {
        self.grid
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
        EngineInfo {
            isa: isa(),
            kernels: "tract 0.23.9".into(),
            precision: "f32".into(),
            mode: "merged".into(),
            threads: self.threads,
        }
    }

    /// Runs `slices` slices; `write_slice(s, out)` fills `out` `[3, H, W]` with slice `s`, from any thread.
    pub fn run(
        &self,
        slices: usize,
        write_slice: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<Output, EngineError> {
        if slices == 0 {
            return Err(EngineError::Empty);
        }
        let patches = self.grid[0] * self.grid[1];
        let workers = self.threads.min(slices);
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, EncodedSlice)>, EngineError> {
            let mut encoder = self.encoder(self.threads / workers)?;
            let mut done = Vec::new();
            loop {
                let s = next.fetch_add(1, Ordering::Relaxed);
                if s >= slices {
                    return Ok(done);
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
        self.pool(embeddings, &attention)
    }

    /// An encoder over the shared plan that splits its operators over `threads` threads; their number does not
    /// change a bit of what it computes.
    pub fn encoder(&self, threads: usize) -> Result<Encoder, EngineError> {
        let pool = || ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = if threads > 1 {
            Some(pool().map_err(|e| EngineError::Run { detail: e.to_string() })?)
        } else {
            None
        };
        let state = self.encoder.spawn().map_err(|e| failed(&e))?;
        Ok(Encoder { state, size: self.size, pool: pool.map(Arc::new) })
    }

    /// Pools embeddings `[S, d]` and attention rows `[S, N]`, and applies the head.
    pub fn pool(&self, embeddings: Vec<f32>, attention: &[f32]) -> Result<Output, EngineError> {
        let slices = embeddings.len() / self.dim;
        if slices == 0 {
            return Err(EngineError::Empty);
        }
        let patches = self.grid[0] * self.grid[1];
        let h = Tensor::from_shape(&[slices, self.dim], &embeddings).map_err(|e| failed(&e))?;
        let a = Tensor::from_shape(&[slices, patches], attention).map_err(|e| failed(&e))?;
        let out = self.pooling.run(tvec![h.into(), a.into()]).map_err(|e| failed(&e))?;
        let [logits, slice_weights, heatmap] = [values(&out[0])?, values(&out[1])?, values(&out[2])?];
        Ok(Output { logits, slice_weights, heatmap, embeddings })
    }
}

/// The encoder with working memory of its own, for one slice after another.
pub struct Encoder {
    state: TypedSimpleState,
    size: [usize; 2],
    pool: Option<Arc<ThreadPool>>,
}

/// What the encoder says of one slice.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedSlice {
    /// `[d]`.
    pub embedding: Vec<f32>,
    /// `[N]`.
    pub attention: Vec<f32>,
}

impl Encoder {
    /// Encodes the slice that `write` fills into `[3, H, W]`.
    pub fn encode(&mut self, write: impl FnOnce(&mut [f32])) -> Result<EncodedSlice, EngineError> {
        let mut slice = Tensor::zero::<f32>(&[1, 3, self.size[0], self.size[1]]).map_err(|e| failed(&e))?;
        {
            let mut plain = slice.try_as_plain_ram_mut().map_err(|e| failed(&e))?;
            write(plain.as_slice_mut::<f32>().map_err(|e| failed(&e))?);
        }
        let state = &mut self.state;
        let run = || state.run(tvec![slice.into()]);
        let out = match &self.pool {
            // From inside the pool, so that no operator has to hand its work over to another thread and wait for it.
            Some(pool) => {
                pool.install(|| multithread_tract_scope(Executor::MultiThread(Arc::clone(pool)), run))
            }
            None => run(),
        };
        let out = out.map_err(|e| failed(&e))?;
        Ok(EncodedSlice { embedding: values(&out[0])?, attention: values(&out[1])? })
    }
}

/// Runs any graph with one input on `input`, all slices at once, and returns its outputs by name: for looking at a
/// backbone, not for the device's work.
pub fn run_graph(graph: Vec<u8>, input: &Weights) -> Result<Tensors, EngineError> {
    let proto = onnx::decode(&graph).map_err(unusable)?;
    drop(graph);
    let names: Vec<String> =
        proto.graph.iter().flat_map(|g| g.output.iter().map(|o| o.name.clone())).collect();
    let mut model =
        tract_onnx::onnx().model_for_proto_model(&proto).map_err(|e| unusable(format!("{e:#}")))?;
    drop(proto);
    model.set_input_fact(0, f32::fact(input.shape.as_slice()).into()).map_err(unusable)?;
    let plan = plan(model.into_typed().map_err(|e| unusable(format!("{e:#}")))?)?;
    let input = Tensor::from_shape(&input.shape, &input.data).map_err(|e| failed(&e))?;
    let out = plan.run(tvec![input.into()]).map_err(|e| failed(&e))?;
    names.into_iter().zip(out).map(|(n, t)| Ok((n, Weights::new(t.shape().to_vec(), values(&t)?)))).collect()
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
