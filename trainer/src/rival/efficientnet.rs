use tch::{TchError, Tensor};

use super::layers::{Conv, ConvNorm, Kernel, pooled};
use super::weights::Maker;

const EPS: f64 = 1e-3;

/// Sizes of an [`EfficientNet`].
pub(super) struct Sizes<'a> {
    /// Channels of the stem.
    pub(super) first: i64,
    /// Its stages.
    pub(super) stages: &'a [Stage],
    /// Channels of the last convolution, which are the features.
    pub(super) features: i64,
}

/// Sizes of a stage.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    /// Whether expansion and the convolution of 3×3 are one.
    pub(super) fused: bool,
    /// By how much a block expands its channels.
    pub(super) expansion: i64,
    /// Of the first block.
    pub(super) stride: i64,
    /// Channels that come out.
    pub(super) channels: i64,
    /// Blocks.
    pub(super) depth: usize,
}

impl Sizes<'_> {
    /// EfficientNetV2-S.
    pub(super) const V2S: Sizes<'static> = Sizes {
        first: 24,
        stages: &[
            Stage { fused: true, expansion: 1, stride: 1, channels: 24, depth: 2 },
            Stage { fused: true, expansion: 4, stride: 2, channels: 48, depth: 4 },
            Stage { fused: true, expansion: 4, stride: 2, channels: 64, depth: 4 },
            Stage { fused: false, expansion: 4, stride: 2, channels: 128, depth: 6 },
            Stage { fused: false, expansion: 6, stride: 1, channels: 160, depth: 9 },
            Stage { fused: false, expansion: 6, stride: 2, channels: 256, depth: 15 },
        ],
        features: 1280,
    };
}

/// An EfficientNetV2 without its classifier (Tan and Le, arXiv 2104.00298), with torchvision's names. There is neither stochastic depth
/// nor dropout, so that a fit is the same each time.
pub(super) struct EfficientNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
    last: ConvNorm,
}

struct Block {
    /// Expansion where there is one; all but the projection, which comes last, are followed by SiLU.
    path: Vec<ConvNorm>,
    /// Before the projection.
    squeeze: Option<Squeeze>,
    residual: bool,
    /// A single convolution is no projection.
    open: bool,
}

/// Squeeze and excitation (Hu et al., arXiv 1709.01507): a gate a channel by the mean over the image.
struct Squeeze {
    reduce: Conv,
    expand: Conv,
}

impl EfficientNet {
    pub(super) fn new(make: &mut Maker, sizes: &Sizes<'_>) -> Result<Self, TchError> {
        let mut channels = sizes.first;
        let part = |stage: usize| [format!("features.{stage}.0"), format!("features.{stage}.1")];
        let stem = ConvNorm::new(make, part(0), [3, channels], Kernel::new(2, 3).stride(2), EPS)?;
        let mut blocks = Vec::new();
        for (number, stage) in (1..).zip(sizes.stages) {
            let Stage { fused, expansion, channels: output, .. } = *stage;
            for n in 0..stage.depth {
                let name = format!("features.{number}.{n}.block");
                let stride = if n == 0 { stage.stride } else { 1 };
                let widths = [channels, expansion * channels, output];
                blocks.push(if fused {
                    Block::fused(make, &name, widths, stride)?
                } else {
                    Block::separable(make, &name, widths, stride)?
                });
                channels = output;
            }
        }
        let names = part(sizes.stages.len() + 1);
        let last = ConvNorm::new(make, names, [channels, sizes.features], Kernel::new(2, 1), EPS)?;
        Ok(Self { stem, blocks, last })
    }

    /// Images `[N, 3, H, W]` → `[N, features]`.
    pub(super) fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let mut x = self.stem.apply(x, train)?.f_silu()?;
        for block in &self.blocks {
            x = block.apply(&x, train)?;
        }
        pooled(&self.last.apply(&x, train)?.f_silu()?)
    }
}

impl Block {
    /// A fused MBConv: one 3×3 convolution expands, another of 1×1 projects; without expansion the first is all.
    fn fused(
        make: &mut Maker,
        name: &str,
        [input, inner, output]: [i64; 3],
        stride: i64,
    ) -> Result<Self, TchError> {
        let part = |n: usize| [format!("{name}.{n}.0"), format!("{name}.{n}.1")];
        let open = inner == input;
        let wide = Kernel::new(2, 3).stride(stride);
        let path = if open {
            vec![ConvNorm::new(make, part(0), [input, output], wide, EPS)?]
        } else {
            vec![
                ConvNorm::new(make, part(0), [input, inner], wide, EPS)?,
                ConvNorm::new(make, part(1), [inner, output], Kernel::new(2, 1), EPS)?,
            ]
        };
        Ok(Self { path, squeeze: None, residual: stride == 1 && input == output, open })
    }

    /// An MBConv: 1×1 expands, 3×3 works on each channel by itself, then squeeze and excitation to a quarter of the input, and
    /// 1×1 projects.
    fn separable(
        make: &mut Maker,
        name: &str,
        [input, inner, output]: [i64; 3],
        stride: i64,
    ) -> Result<Self, TchError> {
        let part = |n: usize| [format!("{name}.{n}.0"), format!("{name}.{n}.1")];
        let depthwise = Kernel::new(2, 3).stride(stride).groups(inner);
        let expand = ConvNorm::new(make, part(0), [input, inner], Kernel::new(2, 1), EPS)?;
        let depthwise = ConvNorm::new(make, part(1), [inner, inner], depthwise, EPS)?;
        let (narrow, kernel) = (input / 4, Kernel::new(2, 1).biased());
        let squeeze = Squeeze {
            reduce: Conv::new(make, &format!("{name}.2.fc1"), [inner, narrow], kernel)?,
            expand: Conv::new(make, &format!("{name}.2.fc2"), [narrow, inner], kernel)?,
        };
        let project = ConvNorm::new(make, part(3), [inner, output], Kernel::new(2, 1), EPS)?;
        let path = vec![expand, depthwise, project];
        Ok(Self { path, squeeze: Some(squeeze), residual: stride == 1 && input == output, open: false })
    }

    fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let mut out = x.shallow_clone();
        for (n, step) in self.path.iter().enumerate() {
            let projects = n + 1 == self.path.len() && !self.open;
            if let (true, Some(squeeze)) = (projects, &self.squeeze) {
                out = squeeze.apply(&out)?;
            }
            out = step.apply(&out, train)?;
            if !projects {
                out = out.f_silu()?;
            }
        }
        if self.residual { out.f_add(x) } else { Ok(out) }
    }
}

impl Squeeze {
    fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mean = x.f_mean_dim([2i64, 3].as_slice(), true, None)?;
        let gate = self.expand.apply(&self.reduce.apply(&mean)?.f_silu()?)?.f_sigmoid()?;
        x.f_mul(&gate)
    }
}
