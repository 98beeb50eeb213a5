//! From one slice to its embedding and attention.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::{DimLike, Factoid};

use self::multithread::{Executor, multithread_tract_scope};
use super::blocks::{Blocks, Crew, Workspace};
use super::{EngineError, Plan, failed, plan, unusable, values};

/// What encodes the slices of a view, shared by all of its encoders.
pub(super) struct EncoderPlan {
    way: Way,
    /// Height and width of a slice, in pixels.
    pub(super) size: [usize; 2],
    /// Width of an embedding.
    pub(super) dim: usize,
    /// Width of the attention.
    pub(super) patches: usize,
}

/// Blocks that are not in the model.
pub(super) struct Fused {
    /// The input whose slices they encode.
    pub(super) slices: String,
    /// The model's inputs that they give.
    pub(super) ends: Vec<String>,
    pub(super) blocks: Blocks,
}

enum Way {
    /// By tract alone.
    Whole(Plan),
    /// Through all blocks by [`Blocks`], and from there by tract.
    Fused { blocks: Arc<Blocks>, after: Plan },
}

impl EncoderPlan {
    /// The part of `model` from `input` to `cut`, slice embeddings and attention, for one slice; what was taken out of it is `fused`.
    pub(super) fn new(
        model: &InferenceModel,
        input: OutletId,
        cut: &[OutletId; 2],
        fused: Option<Fused>,
    ) -> Result<Self, EngineError> {
        let fact: Vec<_> =
            model.outlet_fact(input).map_err(unusable)?.shape.dims().map(Factoid::concretize).collect();
        let [_, Some(channels), Some(height), Some(width)] = fact.as_slice() else {
            return Err(unusable("its input is not slices [S, 3, H, W]"));
        };
        let known = |d: &TDim| d.to_usize().map_err(unusable);
        let size = [known(height)?, known(width)?];
        if known(channels)? != 3 {
            return Err(unusable("its slices do not have three channels"));
        }
        let (last, blocks) = match fused {
            None => (part(model, &[(input, vec![1, 3, size[0], size[1]])], cut)?, None),
            Some(Fused { ends: names, blocks, .. }) => {
                let mut ends = Vec::new();
                for (name, shape) in names.iter().zip(blocks.shapes()) {
                    let named = model.inputs.iter().find(|input| model.node(input.node).name == *name);
                    ends.push((*named.ok_or_else(|| unusable(format!("no tensor {name}")))?, shape));
                }
                (part(model, &ends, cut)?, Some(blocks))
            }
        };
        let shape = |k: usize| -> Result<Vec<usize>, EngineError> {
            let fact = last.output_fact(k).map_err(unusable)?;
            fact.shape
                .as_concrete()
                .map(<[usize]>::to_vec)
                .ok_or_else(|| unusable("an output of unknown shape"))
        };
        let (&[1, dim], &[1, patches]) = (shape(0)?.as_slice(), shape(1)?.as_slice()) else {
            return Err(unusable("slice_embeddings or cls_attention of an unexpected shape"));
        };
        let last = plan(last)?;
        let way = match blocks {
            Some(blocks) => Way::Fused { blocks: Arc::new(blocks), after: last },
            None => Way::Whole(last),
        };
        Ok(Self { way, size, dim, patches })
    }
}

/// The part of a model between tensors of known shapes and others.
fn part(
    model: &InferenceModel,
    inputs: &[(OutletId, Vec<usize>)],
    outputs: &[OutletId],
) -> Result<TypedModel, EngineError> {
    let mut part = model.clone();
    let outlets: Vec<OutletId> = inputs.iter().map(|(outlet, _)| *outlet).collect();
    part.set_input_outlets(&outlets).map_err(unusable)?;
    part.select_output_outlets(outputs).map_err(unusable)?;
    for (k, (_, shape)) in inputs.iter().enumerate() {
        part.set_input_fact(k, f32::fact(shape.as_slice()).into()).map_err(unusable)?;
    }
    part.into_typed().map_err(|e| unusable(format!("{e:#}")))
}

/// The encoder with working memory and threads of its own, for one slice after another.
pub struct Encoder {
    size: [usize; 2],
    state: State,
}

/// As [`Way`].
enum State {
    Whole { state: TypedSimpleState, pool: Option<Arc<ThreadPool>> },
    Fused { blocks: Arc<Blocks>, slice: Vec<f32>, space: Box<Workspace>, crew: Crew, after: TypedSimpleState },
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
    pub(super) fn new(plan: &EncoderPlan, threads: usize) -> Result<Self, EngineError> {
        let threads = threads.max(1);
        let spawn = |plan: &Plan| plan.spawn().map_err(|e| failed(&e));
        let no_threads = |e: &dyn std::fmt::Display| EngineError::Run { detail: e.to_string() };
        let [height, width] = plan.size;
        let state = match &plan.way {
            Way::Whole(whole) => {
                let pool = (threads > 1).then(|| ThreadPoolBuilder::new().num_threads(threads).build());
                let pool = pool.transpose().map_err(|e| no_threads(&e))?.map(Arc::new);
                State::Whole { state: spawn(whole)?, pool }
            }
            Way::Fused { blocks, after } => State::Fused {
                blocks: Arc::clone(blocks),
                slice: vec![0.0; 3 * height * width],
                space: Box::new(blocks.workspace(threads)),
                crew: Crew::new(threads).map_err(|e| no_threads(&e))?,
                after: spawn(after)?,
            },
        };
        Ok(Self { size: plan.size, state })
    }

    /// Encodes the slice that `write` fills into `[3, H, W]`.
    pub fn encode(&mut self, write: impl FnOnce(&mut [f32])) -> Result<EncodedSlice, EngineError> {
        self.run(write)
            .map_err(|e| failed(&e))
            .and_then(|out| Ok(EncodedSlice { embedding: values(&out[0])?, attention: values(&out[1])? }))
    }

    fn run(&mut self, write: impl FnOnce(&mut [f32])) -> TractResult<TVec<TValue>> {
        match &mut self.state {
            State::Whole { state, pool } => {
                let mut slice = Tensor::zero::<f32>(&[1, 3, self.size[0], self.size[1]])?;
                write(slice.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
                let run = || state.run(tvec![slice.into()]);
                match pool {
                    // From inside the pool, so that no operator has to hand its work over to another thread and wait for it.
                    Some(pool) => {
                        pool.install(|| multithread_tract_scope(Executor::MultiThread(Arc::clone(pool)), run))
                    }
                    None => run(),
                }
            }
            State::Fused { blocks, slice, space, crew, after } => {
                write(slice);
                let (tokens, attention) = blocks.run(slice, space, crew);
                let ends = [Some(&*tokens), attention].into_iter().flatten().zip(blocks.shapes());
                let ends = ends.map(|(values, shape)| Ok(Tensor::from_shape(&shape, values)?.into()));
                after.run(ends.collect::<TractResult<TVec<TValue>>>()?)
            }
        }
    }
}
