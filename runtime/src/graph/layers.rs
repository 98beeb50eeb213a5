//! The layers that blocks of every family are made of.

use super::builder::Builder;
use crate::backbone::{Mlp, Tensor, Tensors};

/// Moves weights out of the backbone, so that they are held once.
pub(super) struct Take<'a>(pub &'a mut Tensors);

impl Take<'_> {
    pub(super) fn get(&mut self, name: &str) -> Tensor {
        self.0.remove(name).unwrap_or_else(|| panic!("a backbone has a tensor {name}, taken once"))
    }

    /// Weight and bias of the layer `name`.
    pub(super) fn layer(&mut self, name: &str) -> (Tensor, Tensor) {
        (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")))
    }

    /// The layer `name`, everything that it gives multiplied by `factor`.
    pub(super) fn scaled(&mut self, name: &str, factor: f32) -> (Tensor, Tensor) {
        let (mut weight, mut bias) = self.layer(name);
        weight.data.iter_mut().chain(&mut bias.data).for_each(|w| *w *= factor);
        (weight, bias)
    }

    /// The layer `name` with the LayerScale after it, where there is one, folded in.
    fn layer_scaled(&mut self, name: &str, scale: &str) -> (Tensor, Tensor) {
        let (mut weight, mut bias) = self.layer(name);
        if let Some(scale) = self.0.remove(scale) {
            let rows = weight.data.chunks_exact_mut(weight.shape[1]);
            for ((row, bias), s) in rows.zip(&mut bias.data).zip(&scale.data) {
                for w in row.iter_mut() {
                    *w *= s;
                }
                *bias *= s;
            }
        }
        (weight, bias)
    }
}

/// The LayerNorm `name`.
pub(super) fn norm(b: &mut Builder, take: &mut Take<'_>, name: &str, x: &str, epsilon: f32) -> String {
    let (weight, bias) = take.layer(name);
    b.layer_norm(name, x, &weight, &bias, epsilon)
}

/// The linear layer `name`.
pub(super) fn linear(b: &mut Builder, take: &mut Take<'_>, name: &str, x: &str) -> String {
    let (weight, bias) = take.layer(name);
    b.linear(name, x, &weight, &bias)
}

/// The linear layer `name` and the LayerScale `scale` after it, where there is one.
pub(super) fn linear_scaled(
    b: &mut Builder,
    take: &mut Take<'_>,
    name: &str,
    scale: &str,
    x: &str,
) -> String {
    let (weight, bias) = take.layer_scaled(name, scale);
    b.linear(name, x, &weight, &bias)
}

/// The feed-forward part of `block`, with the LayerScale after it.
pub(super) fn mlp(b: &mut Builder, take: &mut Take<'_>, block: &str, kind: Mlp, x: &str) -> String {
    let n = |part: &str| format!("{block}.{part}");
    let (hidden, out) = match kind {
        Mlp::Gelu { .. } => {
            let x = linear(b, take, &n("fc1"), x);
            (gelu(b, &n("gelu"), &x), "fc2")
        }
        Mlp::GeluTanh { .. } => {
            let x = linear(b, take, &n("fc1"), x);
            (gelu_tanh(b, &n("gelu"), &x), "fc2")
        }
        Mlp::SwiGlu { .. } => {
            let gate = linear(b, take, &n("gate"), x);
            let up = linear(b, take, &n("up"), x);
            let sigmoid = b.node("Sigmoid", &n("gate.sigmoid"), &[&gate]);
            let silu = b.node("Mul", &n("gate.silu"), &[&gate, &sigmoid]);
            (b.node("Mul", &n("gated"), &[&silu, &up]), "down")
        }
    };
    linear_scaled(b, take, &n(out), &n("scale2"), &hidden)
}

/// `x * 0.5 * (1 + erf(x / sqrt 2))` in the operators that engines fuse.
fn gelu(b: &mut Builder, name: &str, x: &str) -> String {
    let n = |part: &str| format!("{name}.{part}");
    let root = b.scalar(&n("sqrt2"), std::f32::consts::SQRT_2);
    let one = b.scalar(&n("one"), 1.0);
    let half = b.scalar(&n("half"), 0.5);
    let scaled = b.node("Div", &n("scaled"), &[x, &root]);
    let erf = b.node("Erf", &n("erf"), &[&scaled]);
    let sum = b.node("Add", &n("sum"), &[&erf, &one]);
    let product = b.node("Mul", &n("product"), &[x, &sum]);
    b.node("Mul", name, &[&product, &half])
}

/// `x * 0.5 * (1 + tanh(sqrt(2 / π) (x + 0.044715 x³)))`.
fn gelu_tanh(b: &mut Builder, name: &str, x: &str) -> String {
    /// sqrt(2 / π).
    const ROOT: f32 = 0.797_884_6;
    let n = |part: &str| format!("{name}.{part}");
    let cubic = b.scalar(&n("cubic"), ROOT * 0.044_715);
    let root = b.scalar(&n("root"), ROOT);
    let one = b.scalar(&n("one"), 1.0);
    let half = b.scalar(&n("half"), 0.5);
    let square = b.node("Mul", &n("square"), &[x, x]);
    let square = b.node("Mul", &n("square.scaled"), &[&square, &cubic]);
    let factor = b.node("Add", &n("factor"), &[&square, &root]);
    let argument = b.node("Mul", &n("argument"), &[x, &factor]);
    let tanh = b.node("Tanh", &n("tanh"), &[&argument]);
    let sum = b.node("Add", &n("sum"), &[&tanh, &one]);
    let product = b.node("Mul", &n("product"), &[x, &sum]);
    b.node("Mul", name, &[&product, &half])
}
