use tch::{TchError, Tensor};

use super::weights::Maker;
use crate::model::sequence::bidirectional;
use crate::random::Draw;

/// A bidirectional LSTM of several layers (Hochreiter and Schmidhuber 1997), as PyTorch's.
pub(super) struct Lstm {
    /// Of each layer, forward and backward: weights of the input and of the state, then their biases.
    weights: Vec<Tensor>,
    layers: i64,
    hidden: i64,
}

impl Lstm {
    /// PyTorch's initial values: all weights and biases uniform in ±1/√hidden.
    pub(super) fn new(
        make: &mut Maker,
        name: &str,
        [input, hidden, layers]: [i64; 3],
    ) -> Result<Self, TchError> {
        let draw = Draw::Uniform(1.0 / (hidden as f64).sqrt());
        let mut weights = Vec::new();
        for layer in 0..layers {
            let width = if layer == 0 { input } else { 2 * hidden };
            for direction in ["", "_reverse"] {
                let mut leaf = |part: &str, dims: &[i64]| {
                    make.leaf(format!("{name}.{part}_l{layer}{direction}"), dims, draw)
                };
                // Four gates, one below the other.
                weights.push(leaf("weight_ih", &[4 * hidden, width])?);
                weights.push(leaf("weight_hh", &[4 * hidden, hidden])?);
                weights.push(leaf("bias_ih", &[4 * hidden])?);
                weights.push(leaf("bias_hh", &[4 * hidden])?);
            }
        }
        Ok(Self { weights, layers, hidden })
    }

    /// Sequences `[B, S, in]` → the states of both directions, `[B, S, 2 hidden]`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let weights: Vec<&Tensor> = self.weights.iter().collect();
        Ok(bidirectional(x, &weights, self.layers, self.hidden)?.0)
    }
}
