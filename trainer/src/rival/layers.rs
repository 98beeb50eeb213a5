//! The layers of networks that are fitted whole, in two and three dimensions.

use tch::{TchError, Tensor};

use super::weights::Maker;
use crate::random::Draw;

/// A convolution with cubic kernels; the number of axes is that of its weight.
pub(super) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    axes: usize,
    stride: i64,
    padding: i64,
    groups: i64,
}

/// What a [`Conv`] is like, apart from its channels. Without bias, of stride 1 and one group, unless told otherwise; kernels of an odd
/// size are padded so that they would keep the size of the image, those of two pixels are not padded.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    axes: usize,
    size: i64,
    stride: i64,
    groups: i64,
    bias: bool,
    start: Start,
}

/// Initial values of a [`Conv`].
#[derive(Clone, Copy)]
enum Start {
    /// Normal, with the variance that keeps that of the gradients (He et al., arXiv 1502.01852); no bias.
    FanOut,
    /// Normal, with the variance that keeps that of the values; no bias.
    FanIn,
    /// PyTorch's own: weight and bias uniform in ±1/√inputs.
    Uniform,
}

impl Kernel {
    /// A kernel of `size` along each of `axes` axes; Kaiming's normal by the outputs, as torchvision has it.
    pub(super) fn new(axes: usize, size: i64) -> Self {
        Self { axes, size, stride: 1, groups: 1, bias: false, start: Start::FanOut }
    }

    pub(super) fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    pub(super) fn groups(self, groups: i64) -> Self {
        Self { groups, ..self }
    }

    pub(super) fn biased(self) -> Self {
        Self { bias: true, ..self }
    }

    /// Initial values by the inputs, as MONAI's DenseNet has them.
    pub(super) fn fan_in(self) -> Self {
        Self { start: Start::FanIn, ..self }
    }

    /// Initial values as PyTorch has them.
    pub(super) fn uniform(self) -> Self {
        Self { start: Start::Uniform, ..self }
    }
}

impl Conv {
    pub(super) fn new(
        make: &mut Maker,
        name: &str,
        [input, output]: [i64; 2],
        kernel: Kernel,
    ) -> Result<Self, TchError> {
        let Kernel { axes, size, stride, groups, bias, start } = kernel;
        let mut dims = vec![output, input / groups];
        dims.extend(std::iter::repeat_n(size, axes));
        let fan = |channels: i64| (channels * dims[2..].iter().product::<i64>()) as f64;
        let [draw, offset] = match start {
            Start::FanOut => [Draw::Normal((2.0 / fan(dims[0])).sqrt()), Draw::Fill(0.0)],
            Start::FanIn => [Draw::Normal((2.0 / fan(dims[1])).sqrt()), Draw::Fill(0.0)],
            Start::Uniform => [Draw::Uniform(1.0 / fan(dims[1]).sqrt()); 2],
        };
        let weight = make.leaf(format!("{name}.weight"), &dims, draw)?;
        let bias = bias.then(|| make.leaf(format!("{name}.bias"), &[output], offset)).transpose()?;
        Ok(Self { weight, bias, axes, stride, padding: (size - 1) / 2, groups })
    }

    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let each = |value: i64| vec![value; self.axes];
        x.f_convolution(
            &self.weight,
            self.bias.as_ref(),
            each(self.stride),
            each(self.padding),
            each(1),
            false,
            each(0),
            self.groups,
        )
    }
}

/// Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167), momentum 0.1.
pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: f64,
}

impl BatchNorm {
    pub(super) fn new(make: &mut Maker, name: &str, channels: i64, eps: f64) -> Result<Self, TchError> {
        Ok(Self {
            weight: make.leaf(format!("{name}.weight"), &[channels], Draw::Fill(1.0))?,
            bias: make.leaf(format!("{name}.bias"), &[channels], Draw::Fill(0.0))?,
            mean: make.running(format!("{name}.running_mean"), channels, 0.0)?,
            var: make.running(format!("{name}.running_var"), channels, 1.0)?,
            eps,
        })
    }

    /// By the statistics of `x` where `train`, else by the running ones.
    pub(super) fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        // One value has no variance: a single small volume, come to a single voxel, would be erased.
        let several = x.numel() > self.mean.numel();
        x.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.mean),
            Some(&self.var),
            train && several,
            0.1,
            self.eps,
            true,
        )
    }
}

/// A convolution and its batch norm.
pub(super) struct ConvNorm {
    conv: Conv,
    norm: BatchNorm,
}

impl ConvNorm {
    /// With the names of the two parts.
    pub(super) fn new(
        make: &mut Maker,
        [conv, norm]: [String; 2],
        channels: [i64; 2],
        kernel: Kernel,
        eps: f64,
    ) -> Result<Self, TchError> {
        Ok(Self {
            conv: Conv::new(make, &conv, channels, kernel)?,
            norm: BatchNorm::new(make, &norm, channels[1], eps)?,
        })
    }

    pub(super) fn apply(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        self.norm.apply(&self.conv.apply(x)?, train)
    }
}

/// `W x + b`.
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl Linear {
    /// PyTorch's initial values: weight and bias uniform in ±1/√inputs.
    pub(super) fn new(make: &mut Maker, name: &str, sizes: [i64; 2]) -> Result<Self, TchError> {
        let draw = Draw::Uniform(1.0 / (sizes[0] as f64).sqrt());
        Self::drawn(make, [format!("{name}.weight"), format!("{name}.bias")], sizes, [draw, draw])
    }

    pub(super) fn drawn(
        make: &mut Maker,
        [weight, bias]: [String; 2],
        [input, output]: [i64; 2],
        draws: [Draw; 2],
    ) -> Result<Self, TchError> {
        Ok(Self {
            weight: make.leaf(weight, &[output, input], draws[0])?,
            bias: make.leaf(bias, &[output], draws[1])?,
        })
    }

    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, Some(&self.bias))
    }
}

/// Layer normalisation over the last axis (Ba et al., arXiv 1607.06450), ε 1e-5.
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(super) fn new(make: &mut Maker, name: &str, d: i64) -> Result<Self, TchError> {
        Ok(Self {
            weight: make.leaf(format!("{name}.weight"), &[d], Draw::Fill(1.0))?,
            bias: make.leaf(format!("{name}.bias"), &[d], Draw::Fill(0.0))?,
        })
    }

    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), 1e-5, true)
    }
}

/// The mean over all positions of `x` `[B, C, …]`, `[B, C]`.
pub(super) fn pooled(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_flatten(2, -1)?.f_mean_dim(2i64, false, None)
}
