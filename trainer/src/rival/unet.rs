//! The blocks of a residual U-Net in three dimensions (Isensee et al., arXiv 1809.10486; UNETR, Hatamizadeh et al., arXiv 2103.10504),
//! with MONAI's names.

use tch::{TchError, Tensor};

use super::layers::{Conv, Kernel};
use super::weights::Maker;
use crate::random::Draw;

const EPS: f64 = 1e-5;

/// Two 3³ convolutions, each followed by instance norm, and a shortcut, a 1³ convolution and its norm where channels change; leaky ReLU
/// of slope 0.01. Norms have no weights.
pub(super) struct Residual {
    conv1: Conv,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl Residual {
    pub(super) fn new(make: &mut Maker, name: &str, [input, output]: [i64; 2]) -> Result<Self, TchError> {
        let mut conv = |part: &str, channels, size| {
            Conv::new(make, &format!("{name}.{part}.conv"), channels, Kernel::new(3, size).uniform())
        };
        let conv1 = conv("conv1", [input, output], 3)?;
        let conv2 = conv("conv2", [output, output], 3)?;
        let shortcut = (input != output).then(|| conv("conv3", [input, output], 1)).transpose()?;
        Ok(Self { conv1, conv2, shortcut })
    }

    /// `[B, in, S, H, W]` → `[B, out, S, H, W]`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let out = normed(&self.conv1.apply(x)?)?.f_leaky_relu()?;
        let out = normed(&self.conv2.apply(&out)?)?;
        let short = self.shortcut.as_ref().map(|conv| normed(&conv.apply(x)?)).transpose()?;
        out.f_add(short.as_ref().unwrap_or(x))?.f_leaky_relu()
    }
}

/// A transposed convolution to twice the size, and a [`Residual`] that reads it together with what the encoder gave at that size.
pub(super) struct Up {
    /// `[in, out, 2, 2, 2]`.
    weight: Tensor,
    residual: Residual,
}

impl Up {
    pub(super) fn new(make: &mut Maker, name: &str, [input, output]: [i64; 2]) -> Result<Self, TchError> {
        // PyTorch counts the inputs of a transposed convolution by its second axis.
        let draw = Draw::Uniform(1.0 / ((8 * output) as f64).sqrt());
        let weight = make.leaf(format!("{name}.transp_conv.conv.weight"), &[input, output, 2, 2, 2], draw)?;
        let residual = Residual::new(make, &format!("{name}.conv_block"), [2 * output, output])?;
        Ok(Self { weight, residual })
    }

    /// `[B, in, S, H, W]` and `skip` `[B, out, 2 S, 2 H, 2 W]` → as `skip`.
    pub(super) fn apply(&self, x: &Tensor, skip: &Tensor) -> Result<Tensor, TchError> {
        let wide = x.f_conv_transpose3d(&self.weight, None::<&Tensor>, [2; 3], [0; 3], [0; 3], 1, [1; 3])?;
        self.residual.apply(&Tensor::f_cat(&[&wide, skip], 1)?)
    }
}

/// Each channel of each volume to mean 0 and variance 1 (Ulyanov et al., arXiv 1607.08022).
fn normed(x: &Tensor) -> Result<Tensor, TchError> {
    let none = None::<&Tensor>;
    x.f_instance_norm(none, none, none, none, true, 0.1, EPS, true)
}
