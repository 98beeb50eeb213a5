//! Vision transformers from the slice to the last block, by a processor's vector instructions.
//!
//! A general engine runs a graph an operator at a time, each with a tensor of its own for what it gives, which is packed again for the next
//! product. Here the tokens lie as the products want them from the first block to the last: in panels of as many tokens as a kernel takes at a time
//! ([`kernel`]). A product's tile is written where it belongs in the next panel, and bias, activation or residual sum are applied to it while
//! it is in the nearest cache; scores, softmax and mixing of a head are done for a panel of queries at a time. All of it is split among
//! threads in parts that do not depend on their number, so the bits do not either.
//!
//! The same weights may also serve several tasks, whose factors are then multiplied beside them ([`Factors`]).
//!
//! A crate of its own, since all that is quick on a device is here: what ships is compiled for speed here, and for size elsewhere.

mod branch;
mod crew;
mod kernel;
mod layout;
mod linear;
mod math;
mod narrow;
mod vector;

use std::sync::{Arc, Mutex, PoisonError};

use self::branch::{Branch, Branches};
pub use self::branch::{Factors, LayerFactors};
pub use self::crew::Crew;
use self::kernel::{Aligned, Kernel, TILE};
pub use self::layout::Layout;
use self::layout::Part;
pub use self::linear::Linear;
use self::linear::{Input, NONE, Weight};
use self::math::{Activate, Activation, Join, Joined, LayerNorm, Rotate, Scale, Softmax};
pub use self::narrow::Format;
use self::narrow::Words;
pub use self::vector::Isa;

/// Blocks that follow one another, their weights packed for this machine's kernels.
pub struct Blocks {
    shape: Shape,
    layout: Layout,
    isa: Isa,
    /// Of the blocks' weights, where they are not as they came.
    format: Option<Format>,
    embedding: Arc<Embedding>,
    chain: Arc<[Block]>,
    /// Beside the weights; none where the factors are merged into them.
    branches: Option<Branches>,
}

/// Patches to tokens.
pub struct Embedding {
    /// Channels, height and width of a slice.
    pub slice: [usize; 3],
    /// Side of a patch.
    pub patch: usize,
    /// Tokens before those of the patches.
    pub before: usize,
    /// From a patch's values, channel after channel; its bias is zeros.
    pub projection: Arc<Linear>,
    /// What is added to each token, the projection's bias included: panels of as many features as a token has ([`Layout::panels_of`]).
    pub table: Vec<f32>,
}

/// What is the same in all blocks of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Of a slice, CLS and registers included.
    pub tokens: usize,
    /// Of the attention.
    pub heads: usize,
    /// Features of a head.
    pub width: usize,
    /// Features inside the feed-forward part.
    pub hidden: usize,
}

/// `x += o(attention(norm1(x)))`, then `x += mlp(norm2(x))`.
pub struct Block {
    /// Whether only CLS is computed, and its attention kept; of the last block only.
    pub cls_only: bool,
    /// Before the attention.
    pub norm1: NormWeights,
    /// Queries, keys and values one after another; `1 / sqrt(width)` is folded into the queries.
    pub qkv: Arc<Linear>,
    /// Cosines and sines in panels of as many features as a head has ([`Layout::panels_of`]).
    pub rope: Option<Arc<[Vec<f32>; 2]>>,
    /// After the attention.
    pub o: Arc<Linear>,
    /// Before the feed-forward part.
    pub norm2: NormWeights,
    /// The feed-forward part.
    pub mlp: Mlp,
}

/// A LayerNorm, `[d]` each.
pub struct NormWeights {
    /// The factors.
    pub weight: Vec<f32>,
    /// The summands.
    pub bias: Vec<f32>,
    /// What is added to the variance.
    pub epsilon: f32,
}

/// A feed-forward part, by what is between its layers.
#[allow(missing_docs, reason = "the layers' usual names")]
pub enum Mlp {
    /// GELU by the error function.
    Gelu { fc1: Arc<Linear>, fc2: Arc<Linear> },
    /// GELU by tanh.
    GeluTanh { fc1: Arc<Linear>, fc2: Arc<Linear> },
    /// `down(silu(gate x) * up x)`.
    SwiGlu { gate: Arc<Linear>, up: Arc<Linear>, down: Arc<Linear> },
}

/// Where a layer's [`Input`] is made.
struct Spare {
    words: Words,
    /// What the branch of a layer has made of its input.
    low: Aligned,
}

/// What one slice after another is computed in.
pub struct Workspace {
    /// The slice's patches: panels of as many features as a patch has values.
    patches: Aligned,
    tokens: Aligned,
    normed: Aligned,
    qkv: Aligned,
    /// A head after the other, as right operands: `[T / columns, width, columns]`.
    keys: Aligned,
    /// A head after the other, as right operands: `[width / columns, T, columns]`.
    values: Aligned,
    mixed: Aligned,
    hidden: Aligned,
    spare: Spare,
    /// The last block's attention `[heads, T]`, if it computes CLS only.
    attention: Vec<f32>,
    /// One a thread.
    scores: Vec<Mutex<Aligned>>,
}

/// What becomes of a linear layer's results.
#[derive(Debug, Clone, Copy)]
enum Finish {
    /// They are written.
    Write(Activation),
    /// They are added to what is there, or that is multiplied by them.
    Onto(Join),
}

const WRITE: Finish = Finish::Write(Activation::None);
const ADD: Finish = Finish::Onto(Join::Add);

impl Blocks {
    /// Of layers packed for that layout and format, which are ones that this machine has instructions for.
    pub fn new(
        shape: Shape,
        layout: Layout,
        format: Option<Format>,
        embedding: Embedding,
        chain: Vec<Block>,
    ) -> Self {
        let isa = layout.kernels.main.isa;
        // What runs them relies on it.
        assert!(Isa::all().contains(&isa), "{isa:?} is not on this machine");
        assert!(format.is_none_or(|format| format.is_there(isa)), "{format:?} is not on this machine");
        Self {
            shape,
            layout,
            isa,
            format,
            embedding: Arc::new(embedding),
            chain: chain.into(),
            branches: None,
        }
    }

    /// The same weights, with a task's factors beside them.
    #[must_use]
    pub fn beside(&self, factors: &Factors) -> Self {
        let (embedding, chain) = (Arc::clone(&self.embedding), Arc::clone(&self.chain));
        Self { embedding, chain, branches: Some(Branches::new(self.layout, factors)), ..*self }
    }

    /// Shapes of what comes out, tokens and, where the last block computes CLS only, attention; with a leading 1 for the slice.
    pub fn shapes(&self) -> Vec<Vec<usize>> {
        let Shape { tokens, heads, .. } = self.shape;
        if self.is_cls_only() {
            vec![vec![1, 1, self.shape.dim()], vec![1, heads, 1, tokens]]
        } else {
            vec![vec![1, tokens, self.shape.dim()]]
        }
    }

    /// Memory for one slice at a time on that many threads.
    pub fn workspace(&self, threads: usize) -> Workspace {
        let Shape { tokens, heads, width, hidden } = self.shape;
        let d = self.shape.dim();
        let columns = self.layout.columns();
        let padded = tokens.next_multiple_of(columns);
        let panels = |features: usize| Aligned::new(self.layout.lanes() * features);
        let scores = || Mutex::new(Aligned::new(padded * self.layout.kernels.main.lanes));
        Workspace {
            patches: panels(self.embedding.projection.inputs),
            tokens: panels(d),
            normed: panels(d),
            qkv: panels(3 * d),
            keys: Aligned::new(heads * padded * width),
            values: Aligned::new(heads * tokens * width),
            mixed: panels(d),
            hidden: panels(hidden),
            spare: Spare {
                words: Words::new(self.layout, self.format.map_or(0, |format| format.words(hidden.max(d)))),
                low: panels(self.branches.as_ref().map_or(0, Branches::width)),
            },
            attention: vec![0.0; heads * tokens],
            scores: (0..threads.max(1)).map(|_| scores()).collect(),
        }
    }

    /// From a slice `[3, H, W]` to tokens `[T, d]`, or to `[1, d]` and the attention `[heads, T]` where the last block computes CLS only.
    pub fn run<'w>(
        &self,
        slice: &[f32],
        space: &'w mut Workspace,
        crew: &Crew,
    ) -> (Vec<f32>, Option<&'w [f32]>) {
        let mut layout = self.layout;
        self.embed(slice, space, crew);
        for (n, block) in self.chain.iter().enumerate() {
            let branches = self.branches.as_ref().map(|branches| &branches.blocks[n]);
            layout = self.attend(block, branches, layout, space, crew);
            self.feed(block, layout, space, crew);
        }
        let out = layout.rows(space.tokens.values(), self.shape.dim(), layout.tokens);
        (out, self.is_cls_only().then_some(&*space.attention))
    }

    /// `tokens = table + projection(patches)`.
    fn embed(&self, slice: &[f32], space: &mut Workspace, crew: &Crew) {
        let Self { layout, ref embedding, .. } = *self;
        let d = self.shape.dim();
        let inputs = embedding.projection.inputs;
        let parts = layout.parts(space.patches.values_mut(), inputs, 0..inputs, inputs);
        crew.each(parts, |_, mut part| embedding.patches(layout, slice, &mut part));
        space.tokens.values_mut().copy_from_slice(&embedding.table);
        let patch = self.branches.as_ref().map(|branches| &branches.patch);
        let input = self.read(&embedding.projection, patch, layout, &space.patches, &mut space.spare, crew);
        let parts = layout.parts(space.tokens.values_mut(), d, 0..d, layout.share(d, crew));
        self.linear(&embedding.projection, &input, layout, parts, ADD, crew);
    }

    fn is_cls_only(&self) -> bool {
        self.chain.last().is_some_and(|block| block.cls_only)
    }

    /// `tokens += o(attention(norm1(tokens)))`. Returns how the tokens lie that are computed: all, or CLS alone.
    fn attend(
        &self,
        block: &Block,
        branches: Option<&[Branch; 2]>,
        layout: Layout,
        space: &mut Workspace,
        crew: &Crew,
    ) -> Layout {
        let Self { isa, .. } = *self;
        let Shape { tokens, width, .. } = self.shape;
        let d = self.shape.dim();
        let qkv = 3 * d;
        let [qkv_branch, o_branch] = [0, 1].map(|n| branches.map(|branches| &branches[n]));

        let parts = layout.parts(space.normed.values_mut(), d, 0..d, d);
        self.norm(&block.norm1, layout, &space.tokens, parts, crew);
        let features = if block.cls_only { d..qkv } else { 0..qkv };
        let chunk = layout.share(features.len(), crew);
        let input = self.read(&block.qkv, qkv_branch, layout, &space.normed, &mut space.spare, crew);
        let parts = layout.parts(space.qkv.values_mut(), qkv, features.clone(), chunk);
        self.linear(&block.qkv, &input, layout, parts, WRITE, crew);

        if let Some(rope) = &block.rope {
            // CLS alone is not rotated.
            let rotated = features.start..2 * d;
            crew.each(layout.parts(space.qkv.values_mut(), qkv, rotated, width), |_, part| {
                let lanes = layout.kernel(part.panel).lanes;
                let table = layout.start(part.panel, width);
                let [cos, sin] = rope.each_ref().map(|values| &values[table..][..part.values.len()]);
                isa.with_vector(lanes, Rotate { x: part.values, cos, sin });
            });
        }

        let padded = tokens.next_multiple_of(layout.columns());
        let keys = space.keys.values_mut().chunks_mut(padded * width);
        let operands = keys.zip(space.values.values_mut().chunks_mut(tokens * width)).enumerate();
        let projected = space.qkv.values();
        crew.each(operands.collect(), |_, (head, (keys, values))| {
            layout.right_operands(projected, d, head, width, keys, values);
        });

        let mut layout = layout;
        if block.cls_only {
            let cls = Layout::new(isa, 1);
            for values in [&mut space.tokens, &mut space.normed] {
                let row = layout.rows(values.values(), d, 1);
                cls.fill(&row, d, values.values_mut());
            }
            layout = cls;
            let input = self.read(&block.qkv, qkv_branch, layout, &space.normed, &mut space.spare, crew);
            let parts = layout.parts(space.qkv.values_mut(), qkv, 0..d, layout.share(d, crew));
            self.linear(&block.qkv, &input, layout, parts, WRITE, crew);
        }

        let mut attention = space.attention.chunks_mut(tokens);
        let parts = layout.parts(space.mixed.values_mut(), d, 0..d, width).into_iter();
        let parts = parts.map(|part| (part, if block.cls_only { attention.next() } else { None }));
        let (projected, keys, values) = (space.qkv.values(), space.keys.values(), space.values.values());
        let scores = &space.scores;
        crew.each(parts.collect(), |thread, (part, attention)| {
            let kernel = layout.kernel(part.panel);
            let Kernel { lanes, columns, .. } = kernel;
            let head = part.first / width;
            let mut scores = scores[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let scores = &mut scores.values_mut()[..padded * lanes];

            let queries = &projected[layout.start(part.panel, qkv) + part.first * lanes..][..width * lanes];
            let keys = keys[head * padded * width..].chunks_exact(width * columns);
            for (tile, keys) in scores.chunks_exact_mut(kernel.tile()).zip(keys) {
                kernel.multiply([(queries, keys)], &NONE[..columns], tile);
            }
            let scores = &mut scores[..tokens * lanes];
            let mut inverse = [0.0; TILE];
            isa.with_vector(lanes, Softmax { lanes, x: scores, inverse: &mut inverse });
            if let Some(attention) = attention {
                let cls = scores.iter().step_by(lanes);
                attention.iter_mut().zip(cls).for_each(|(out, e)| *out = e * inverse[0]);
            }
            let values = values[head * width * tokens..].chunks_exact(tokens * columns);
            for (tile, values) in part.values.chunks_exact_mut(kernel.tile()).zip(values) {
                kernel.multiply([(scores, values)], &NONE[..columns], tile);
            }
            isa.with_vector(lanes, Scale { lanes, factors: &inverse, x: part.values });
        });

        let input = self.read(&block.o, o_branch, layout, &space.mixed, &mut space.spare, crew);
        let parts = layout.parts(space.tokens.values_mut(), d, 0..d, layout.share(d, crew));
        self.linear(&block.o, &input, layout, parts, ADD, crew);
        layout
    }

    /// `tokens += mlp(norm2(tokens))`.
    fn feed(&self, block: &Block, layout: Layout, space: &mut Workspace, crew: &Crew) {
        let (d, hidden) = (self.shape.dim(), self.shape.hidden);
        let parts = layout.parts(space.normed.values_mut(), d, 0..d, d);
        self.norm(&block.norm2, layout, &space.tokens, parts, crew);
        // Whatever has this input has the same format.
        let first = match &block.mlp {
            Mlp::Gelu { fc1, .. } | Mlp::GeluTanh { fc1, .. } => fc1,
            Mlp::SwiGlu { gate, .. } => gate,
        };
        let input = self.read(first, None, layout, &space.normed, &mut space.spare, crew);
        let mut inner = |layer: &Linear, finish: Finish| {
            let chunk = layout.share(hidden, crew);
            let parts = layout.parts(space.hidden.values_mut(), hidden, 0..hidden, chunk);
            self.linear(layer, &input, layout, parts, finish, crew);
        };
        let last = match &block.mlp {
            Mlp::Gelu { fc1, fc2 } => {
                inner(fc1, Finish::Write(Activation::Gelu));
                fc2
            }
            Mlp::GeluTanh { fc1, fc2 } => {
                inner(fc1, Finish::Write(Activation::GeluTanh));
                fc2
            }
            Mlp::SwiGlu { gate, up, down } => {
                inner(gate, Finish::Write(Activation::Silu));
                inner(up, Finish::Onto(Join::Multiply));
                down
            }
        };
        let input = self.read(last, None, layout, &space.hidden, &mut space.spare, crew);
        let parts = layout.parts(space.tokens.values_mut(), d, 0..d, layout.share(d, crew));
        self.linear(last, &input, layout, parts, ADD, crew);
    }

    fn norm(&self, norm: &NormWeights, layout: Layout, tokens: &Aligned, parts: Vec<Part<'_>>, crew: &Crew) {
        let Self { isa, .. } = *self;
        let NormWeights { weight, bias, epsilon } = norm;
        crew.each(parts, |_, part| {
            let lanes = layout.kernel(part.panel).lanes;
            let x = &tokens.values()[layout.start(part.panel, self.shape.dim())..][..part.values.len()];
            isa.with_vector(lanes, LayerNorm { lanes, x, weight, bias, epsilon: *epsilon, out: part.values });
        });
    }

    /// Makes ready what a layer's weight and its branch, if it has one, multiply of the panels of `tokens`.
    fn read<'a>(
        &self,
        layer: &Linear,
        branch: Option<&'a Branch>,
        layout: Layout,
        tokens: &'a Aligned,
        spare: &'a mut Spare,
        crew: &Crew,
    ) -> Input<'a> {
        let Spare { words, low } = spare;
        let words = match &layer.weight {
            Weight::Whole(_) => None,
            Weight::Narrow(narrow) => {
                let panels = words.panels(layout, narrow.format(), layer.inputs);
                crew.each(panels, |_, (panel, words, scales)| {
                    narrow.read(
                        layout.kernel(panel).lanes,
                        layer.panel(layout, panel, tokens),
                        words,
                        scales,
                    );
                });
                Some(&*words)
            }
        };
        let beside = branch.map(|branch| {
            let width = branch.down.bias.len();
            let parts = layout.parts(low.values_mut(), width, 0..width, width);
            let whole = Input { tokens, words: None, beside: None };
            self.linear(&branch.down, &whole, layout, parts, WRITE, crew);
            (branch, &*low)
        });
        Input { tokens, words, beside }
    }

    /// Writes `finish` of the layer's products with the panels of `input` into `parts`.
    fn linear(
        &self,
        layer: &Linear,
        input: &Input<'_>,
        layout: Layout,
        parts: Vec<Part<'_>>,
        finish: Finish,
        crew: &Crew,
    ) {
        let Self { isa, .. } = *self;
        crew.each(parts, |_, part| {
            let kernel = layout.kernel(part.panel);
            let Kernel { lanes, columns, .. } = kernel;
            let mut tile = [0.0; TILE];
            let tile = &mut tile[..kernel.tile()];
            for (n, out) in part.values.chunks_exact_mut(kernel.tile()).enumerate() {
                let feature = part.first + n * columns;
                match finish {
                    Finish::Write(activation) => {
                        layer.multiply(kernel, layout, part.panel, input, feature, out);
                        if activation != Activation::None {
                            isa.with_vector(lanes, Activate { activation, x: out });
                        }
                    }
                    Finish::Onto(join) => {
                        layer.multiply(kernel, layout, part.panel, input, feature, tile);
                        isa.with_vector(lanes, Joined { join, x: out, other: tile });
                    }
                }
            }
        });
    }
}

impl Shape {
    fn dim(&self) -> usize {
        self.heads * self.width
    }
}

impl Embedding {
    /// Lays the patches of a panel's tokens side by side; those of no patch are zeros.
    fn patches(&self, layout: Layout, slice: &[f32], part: &mut Part<'_>) {
        let [channels, height, width] = self.slice;
        let lanes = layout.kernel(part.panel).lanes;
        let first = part.panel * layout.kernels.main.lanes;
        for lane in 0..lanes.min(layout.tokens - first) {
            let Some(patch) = (first + lane).checked_sub(self.before) else { continue };
            let columns = width / self.patch;
            let corner = patch / columns * self.patch * width + patch % columns * self.patch;
            let mut out = part.values[lane..].iter_mut().step_by(lanes);
            for channel in 0..channels {
                for y in 0..self.patch {
                    let row = &slice[channel * height * width + y * width + corner..][..self.patch];
                    row.iter().zip(&mut out).for_each(|(x, out)| *out = *x);
                }
            }
        }
    }
}
