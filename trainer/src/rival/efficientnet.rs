use tch::{TchError, Tensor};

use super::layers::{Conv, ConvNorm, Kernel, pooled};
use super::weights::Maker;

const EPS: f64 = 1e-3;

/// Features of EfficientNetV2-S.
pub(super) const FEATURES: i64 = 1280;

/// The stages of EfficientNetV2-S: whether fused, by how much the channels are expanded, stride of the first block, channels that come
/// out, blocks.
const STAGES: [(bool, i64, i64, i64, usize); 6] = [
    (true, 1, 1, 24, 2),
    (true, 4, 2, 48, 4),
    (true, 4, 2, 64, 4),
    (false, 4, 2, 128, 6),
    (false, 6, 1, 160, 9),
    (false, 6, 2, 256, 15),
];

/// EfficientNetV2-S without its classifier (Tan and Le, arXiv 2104.00298), with torchvision's names. There is neither stochastic depth
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
    pub(super) fn new(make: &mut Maker) -> Result<Self, TchError> {
        let mut channels = 24;
        let part = |stage: usize| [format!("features.{stage}.0"), format!("features.{stage}.1")];
        let stem = ConvNorm::new(make, part(0), [3, channels], Kernel::new(2, 3).stride(2), EPS)?;
        let mut blocks = Vec::new();
        for (stage, (fused, expansion, stride, output, depth)) in (1..).zip(STAGES) {
            for n in 0..depth {
                let name = format!("features.{stage}.{n}.block");
                let stride = if n == 0 { stride } else { 1 };
                let sizes = [channels, expansion * channels, output];
                blocks.push(if fused {
                    Block::fused(make, &name, sizes, stride)?
                } else {
                    Block::separable(make, &name, sizes, stride)?
                });
                channels = output;
            }
        }
        let last = ConvNorm::new(make, part(7), [channels, FEATURES], Kernel::new(2, 1), EPS)?;
        Ok(Self { stem, blocks, last })
    }

    /// Images `[N, 3, H, W]` → `[N, 1280]`.
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
