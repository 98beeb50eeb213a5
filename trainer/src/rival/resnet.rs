use tch::{TchError, Tensor};

use super::image::{enlarged, image};
use super::layers::{ConvNorm, Kernel, Linear, pooled};
use super::weights::Maker;
use super::{Rival, Weights};

const EPS: f64 = 1e-5;

/// Sizes of a [`ResNet`].
pub(super) struct Sizes {
    /// Channels of the first stage; each later one has twice as many.
    pub(super) first: i64,
    /// Blocks of each stage.
    pub(super) depths: [usize; 4],
    /// Blocks of 1³, 3³ and 1³ convolutions to four times the stage's channels, rather than of two 3³ ones.
    pub(super) bottleneck: bool,
}

impl Sizes {
    /// ResNet-18.
    pub(super) const R18: Self = Self { first: 64, depths: [2; 4], bottleneck: false };
    /// ResNet-50.
    pub(super) const R50: Self = Self { first: 64, depths: [3, 4, 6, 3], bottleneck: true };
}

/// A ResNet in three dimensions (He et al., arXiv 1512.03385; Hara et al., arXiv 1711.09577) as MedicalNet builds it, and MONAI if told
/// `conv1_t_stride=2` and `bias_downsample=False`: a 7³ stem of stride 2, maximum over 3³ voxels, four stages, shortcut B (a 1³
/// convolution without bias and its norm where sizes change). The last two stages halve the size, as for classification, where MedicalNet's dilate for segmentation; the weights are the same.
pub(super) struct ResNet {
    weights: Weights,
    grey: bool,
    stem: ConvNorm,
    blocks: Vec<Block>,
    head: Linear,
}

struct Block {
    /// All but the last are followed by a ReLU.
    path: Vec<ConvNorm>,
    shortcut: Option<ConvNorm>,
}

impl ResNet {
    pub(super) fn new(mut make: Maker, sizes: &Sizes, labels: usize, grey: bool) -> Result<Self, TchError> {
        let names = ["conv1".into(), "bn1".into()];
        let channels = [if grey { 1 } else { 3 }, sizes.first];
        let stem = ConvNorm::new(&mut make, names, channels, Kernel::new(3, 7).stride(2), EPS)?;
        let mut channels = sizes.first;
        let mut blocks = Vec::new();
        for (stage, &depth) in sizes.depths.iter().enumerate() {
            let width = sizes.first << stage;
            for n in 0..depth {
                let stride = if stage > 0 && n == 0 { 2 } else { 1 };
                let name = format!("layer{}.{n}", stage + 1);
                let (block, output) =
                    Block::new(&mut make, &name, [channels, width], stride, sizes.bottleneck)?;
                blocks.push(block);
                channels = output;
            }
        }
        let head = Linear::new(&mut make, "fc", [channels, labels as i64])?;
        Ok(Self { weights: make.finish(), grey, stem, blocks, head })
    }
}

impl Block {
    /// The block and the channels that it gives.
    fn new(
        make: &mut Maker,
        name: &str,
        [input, width]: [i64; 2],
        stride: i64,
        bottleneck: bool,
    ) -> Result<(Self, i64), TchError> {
        let kernel = |size| Kernel::new(3, size);
        let convs = if bottleneck {
            vec![
                ([input, width], kernel(1)),
                ([width, width], kernel(3).stride(stride)),
                ([width, 4 * width], kernel(1)),
            ]
        } else {
            vec![([input, width], kernel(3).stride(stride)), ([width, width], kernel(3))]
        };
        let output = convs.last().map_or(width, |(channels, _)| channels[1]);
        let mut path = Vec::new();
        for (n, (channels, kernel)) in (1..).zip(convs) {
            let names = [format!("{name}.conv{n}"), format!("{name}.bn{n}")];
            path.push(ConvNorm::new(make, names, channels, kernel, EPS)?);
        }
        let mut shortcut = None;
        if stride != 1 || input != output {
            let names = [format!("{name}.downsample.0"), format!("{name}.downsample.1")];
            shortcut = Some(ConvNorm::new(make, names, [input, output], kernel(1).stride(stride), EPS)?);
        }
        Ok((Self { path, shortcut }, output))
    }

    fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let mut out = x.shallow_clone();
        for (n, step) in self.path.iter().enumerate() {
            out = step.apply(&out, train)?;
            if n + 1 < self.path.len() {
                out = out.f_relu()?;
            }
        }
        let short = self.shortcut.as_ref().map(|shortcut| shortcut.apply(x, train)).transpose()?;
        out.f_add(short.as_ref().unwrap_or(x))?.f_relu()
    }
}

impl Rival for ResNet {
    fn forward(&self, volumes: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let x = self.stem.apply(&image(volumes, self.grey, enlarged)?, train)?.f_relu()?;
        let mut x = x.f_max_pool3d([3; 3], [2; 3], [1; 3], [1; 3], false)?;
        for block in &self.blocks {
            x = block.apply(&x, train)?;
        }
        self.head.apply(&pooled(&x)?)
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn resampled(&self, size: [usize; 3]) -> Option<[usize; 3]> {
        enlarged(size)
    }
}
