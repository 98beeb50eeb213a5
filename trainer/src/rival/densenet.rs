use tch::{TchError, Tensor};

use super::image::{enlarged, image};
use super::layers::{BatchNorm, Conv, Kernel, Linear, pooled};
use super::weights::Maker;
use super::{Rival, Weights};
use crate::random::Draw;

const EPS: f64 = 1e-5;

/// Sizes of a [`DenseNet`].
pub(super) struct Sizes<'a> {
    /// Channels of the stem.
    pub(super) first: i64,
    /// Channels that each layer adds.
    pub(super) growth: i64,
    /// Layers of each block.
    pub(super) blocks: &'a [usize],
}

impl Sizes<'_> {
    /// DenseNet-121.
    pub(super) const D121: Sizes<'static> = Sizes { first: 64, growth: 32, blocks: &[6, 12, 24, 16] };
}

/// A DenseNet in three dimensions (Huang et al., arXiv 1608.06993) as MONAI builds it: layers of norm, ReLU, 1³ convolution to four
/// times the growth, norm, ReLU, 3³ convolution, each of which reads what all before it in its block gave. No dropout.
pub(super) struct DenseNet {
    weights: Weights,
    grey: bool,
    stem: Conv,
    norm: BatchNorm,
    blocks: Vec<Block>,
    last: BatchNorm,
    head: Linear,
}

struct Block {
    layers: Vec<[Step; 2]>,
    /// To half the channels, before the mean over 2³ voxels; the last block has none.
    transition: Option<Step>,
}

/// Norm, ReLU and convolution.
struct Step {
    norm: BatchNorm,
    conv: Conv,
}

impl Step {
    fn new(
        make: &mut Maker,
        [norm, conv]: [String; 2],
        channels: [i64; 2],
        size: i64,
    ) -> Result<Self, TchError> {
        Ok(Self {
            norm: BatchNorm::new(make, &norm, channels[0], EPS)?,
            conv: Conv::new(make, &conv, channels, Kernel::new(3, size).fan_in())?,
        })
    }

    fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        self.conv.apply(&self.norm.apply(x, train)?.f_relu()?)
    }
}

impl DenseNet {
    pub(super) fn new(
        mut make: Maker,
        sizes: &Sizes<'_>,
        labels: usize,
        grey: bool,
    ) -> Result<Self, TchError> {
        let Sizes { first, growth, blocks: depths } = *sizes;
        let kernel = Kernel::new(3, 7).stride(2).fan_in();
        let stem = Conv::new(&mut make, "features.conv0", [if grey { 1 } else { 3 }, first], kernel)?;
        let norm = BatchNorm::new(&mut make, "features.norm0", first, EPS)?;
        let mut channels = first;
        let mut blocks = Vec::new();
        for (b, &depth) in depths.iter().enumerate() {
            let mut layers = Vec::new();
            for l in 1..=depth {
                let of = |part: &str| format!("features.denseblock{}.denselayer{l}.layers.{part}", b + 1);
                let inner = 4 * growth;
                layers.push([
                    Step::new(&mut make, [of("norm1"), of("conv1")], [channels, inner], 1)?,
                    Step::new(&mut make, [of("norm2"), of("conv2")], [inner, growth], 3)?,
                ]);
                channels += growth;
            }
            let mut transition = None;
            if b + 1 < depths.len() {
                let of = |part: &str| format!("features.transition{}.{part}", b + 1);
                let step = Step::new(&mut make, [of("norm"), of("conv")], [channels, channels / 2], 1)?;
                transition = Some(step);
                channels /= 2;
            }
            blocks.push(Block { layers, transition });
        }
        let last = BatchNorm::new(&mut make, "features.norm5", channels, EPS)?;
        let names = ["class_layers.out.weight".into(), "class_layers.out.bias".into()];
        let draws = [Draw::Uniform(1.0 / (channels as f64).sqrt()), Draw::Fill(0.0)];
        let head = Linear::drawn(&mut make, names, [channels, labels as i64], draws)?;
        Ok(Self { weights: make.finish(), grey, stem, norm, blocks, last, head })
    }
}

impl Block {
    fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let mut x = x.shallow_clone();
        for [narrow, wide] in &self.layers {
            let more = wide.apply(&narrow.apply(&x, train)?, train)?;
            x = Tensor::f_cat(&[&x, &more], 1)?;
        }
        match &self.transition {
            Some(step) => step.apply(&x, train)?.f_avg_pool3d([2; 3], [2; 3], [0; 3], false, true, None),
            None => Ok(x),
        }
    }
}

impl Rival for DenseNet {
    fn forward(&self, volumes: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let x = self.stem.apply(&image(volumes, self.grey, enlarged)?)?;
        let x = self.norm.apply(&x, train)?.f_relu()?;
        let mut x = x.f_max_pool3d([3; 3], [2; 3], [1; 3], [1; 3], false)?;
        for block in &self.blocks {
            x = block.apply(&x, train)?;
        }
        self.head.apply(&pooled(&self.last.apply(&x, train)?.f_relu()?)?)
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn resampled(&self, size: [usize; 3]) -> Option<[usize; 3]> {
        enlarged(size)
    }
}
