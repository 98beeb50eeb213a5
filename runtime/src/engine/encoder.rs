//! From one slice to its embedding and attention.

use std::sync::Arc;

use blocks::{Blocks, Crew, Workspace};
use tract_core::dims;
use tract_core::prelude::*;

use super::translate::Graph;
use super::{EngineError, Plan, failed, plan, unusable, unusable_as, values};

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
    /// The part of a graph from `input`, slices of that shape, to `cut`, slice embeddings and attention, for one slice; what was taken out of it
    /// is `fused`.
    pub(super) fn new(
        graph: &Graph,
        input: &str,
        shape: &[Option<usize>],
        cut: &[String; 2],
        fused: Option<Fused>,
    ) -> Result<Self, EngineError> {
        let &[_, Some(3), Some(height), Some(width)] = shape else {
            return Err(unusable(format!("its input {input} is not slices [S, 3, H, W]")));
        };
        let inputs: Vec<_> = match &fused {
            None => vec![(input, dims!(1, 3, height, width))],
            Some(Fused { ends, blocks, .. }) => {
                let shapes = blocks.shapes().into_iter().map(|shape| shape.as_slice().into());
                ends.iter().map(String::as_str).zip(shapes).collect()
            }
        };
        let last = graph.part(&inputs, &cut.each_ref().map(String::as_str)).map_err(|e| unusable_as(&e))?;
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
        let way = match fused {
            Some(Fused { blocks, .. }) => Way::Fused { blocks: Arc::new(blocks), after: last },
            None => Way::Whole(last),
        };
        Ok(Self { way, size: [height, width], dim, patches })
    }
}

/// The encoder with working memory and threads of its own, for one slice after another.
pub struct Encoder {
    size: [usize; 2],
    state: State,
}

/// As [`Way`].
enum State {
    Whole(TypedSimpleState),
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
            Way::Whole(whole) => State::Whole(spawn(whole)?),
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
            State::Whole(state) => {
                let mut slice = Tensor::zero::<f32>(&[1, 3, self.size[0], self.size[1]])?;
                write(slice.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
                state.run(tvec![slice.into()])
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
