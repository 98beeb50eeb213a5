//! Pooling by networks that see the slices as a sequence or a set, to compare the query with: an LSTM and a Transformer layer. A fit
//! has their parameters, a plugin does not.

use runtime::backbone::Arch;
use tch::{Device, Kind, TchError, Tensor};

use super::Pooling;
use super::layers::probabilities;
use super::parameters::{Parameters, leaf};
use crate::random::{Draw, Purpose, generator};

/// What the names of the parameters begin with.
pub(crate) const PREFIX: &str = "pooling.";

/// Standard deviation of the Transformer's CLS token at the start.
const CLS_STD: f64 = 0.02;

/// Names, shapes and initial values of what `pooling` has besides a query, for embeddings of width `dim`. Both as PyTorch's modules
/// have them: `nn.LSTM` uniform in ±1/√hidden, `nn.MultiheadAttention`'s projection Xavier-uniform with zero biases, `nn.Linear`
/// uniform in ±1/√fan-in.
fn shapes(pooling: Pooling, dim: usize) -> Vec<(String, Vec<usize>, Draw)> {
    match pooling {
        Pooling::Query | Pooling::Mean | Pooling::Median | Pooling::ThreePlanes => Vec::new(),
        Pooling::Lstm => {
            let hidden = dim.div_ceil(2);
            let bound = Draw::Uniform((1.0 / (hidden as f32).sqrt()).into());
            let direction = |name: &str| {
                let of = |part: &str, dims: &[usize]| (format!("{name}.{part}"), dims.to_vec(), bound);
                [
                    of("weight_ih", &[4 * hidden, dim]),
                    of("weight_hh", &[4 * hidden, hidden]),
                    of("bias_ih", &[4 * hidden]),
                    of("bias_hh", &[4 * hidden]),
                ]
            };
            [direction("forward"), direction("backward")].concat()
        }
        Pooling::Transformer => {
            let bound = Draw::Uniform((1.0 / (dim as f32).sqrt()).into());
            let xavier = Draw::Uniform((6.0 / (4 * dim) as f32).sqrt().into());
            let (zero, one) = (Draw::Fill(0.0), Draw::Fill(1.0));
            let of = |name: &str, dims: &[usize], start: Draw| (name.to_owned(), dims.to_vec(), start);
            vec![
                of("cls", &[dim], Draw::NormalWithinTwo(CLS_STD)),
                of("norm1.weight", &[dim], one),
                of("norm1.bias", &[dim], zero),
                of("qkv.weight", &[3 * dim, dim], xavier),
                of("qkv.bias", &[3 * dim], zero),
                of("o.weight", &[dim, dim], bound),
                of("o.bias", &[dim], zero),
                of("norm2.weight", &[dim], one),
                of("norm2.bias", &[dim], zero),
                of("fc1.weight", &[dim, dim], bound),
                of("fc1.bias", &[dim], bound),
                of("fc2.weight", &[dim, dim], bound),
                of("fc2.bias", &[dim], bound),
                of("norm.weight", &[dim], one),
                of("norm.bias", &[dim], zero),
            ]
        }
    }
}

impl Pooling {
    /// Names and shapes of the parameters that this pooling has besides a query.
    pub(super) fn content(self, dim: usize) -> Vec<(String, Vec<usize>)> {
        shapes(self, dim).into_iter().map(|(name, dims, _)| (format!("{PREFIX}{name}"), dims)).collect()
    }
}

impl Parameters {
    /// The same parameters with slices pooled in another way: without queries where they do not serve, and with what the pooling
    /// itself learns. The others have the values that they have with a query.
    pub fn pooled_by(
        mut self,
        pooling: Pooling,
        arch: &Arch,
        seed: u64,
        device: Device,
    ) -> Result<Self, TchError> {
        self.named.retain(|(name, _)| pooling == Pooling::Query || !name.ends_with("query"));
        for (index, (name, dims, draw)) in shapes(pooling, arch.dim).into_iter().enumerate() {
            let mut rng = generator(seed, Purpose::Init, 1, index as u64);
            let values = draw.values(dims.iter().product(), &mut rng);
            self.named.push((format!("{PREFIX}{name}"), leaf(&dims, &values, device)?));
        }
        Ok(Self { pooling, ..self })
    }

    fn of_pooling(&self, name: &str) -> Result<Tensor, TchError> {
        self.get(&format!("{PREFIX}{name}"))
    }
}

/// One bidirectional LSTM over `rows` `[S, d]` in the order of the slices: weights `[S]`, all 1/S since it has none, and the last
/// states of both directions, `[d]`. An odd width is cut to `d`.
pub(super) fn lstm(parameters: &Parameters, rows: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let (count, dim) = rows.size2()?;
    let mut weights = Vec::new();
    for direction in ["forward", "backward"] {
        for part in ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] {
            weights.push(parameters.of_pooling(&format!("{direction}.{part}"))?);
        }
    }
    let hidden = weights[1].size()[1];
    let weights: Vec<&Tensor> = weights.iter().collect();
    let (_, last) = bidirectional(&rows.f_unsqueeze(0)?, &weights, 1, hidden)?;
    let even = Tensor::f_full([count], 1.0 / count as f64, (Kind::Float, rows.device()))?;
    Ok((even, last.f_flatten(0, -1)?.f_narrow(0, 0, dim)?))
}

/// A bidirectional LSTM of several layers (Hochreiter and Schmidhuber 1997) as PyTorch's, over sequences `[B, S, in]`: the last layer's
/// states `[B, S, 2 hidden]`, and the last states of every layer and direction, `[2 layers, B, hidden]`. Of each layer and direction, forward
/// first: the weights of input and state, `[4 hidden, …]`, then their biases.
pub(crate) fn bidirectional(
    x: &Tensor,
    weights: &[&Tensor],
    layers: i64,
    hidden: i64,
) -> Result<(Tensor, Tensor), TchError> {
    let start = Tensor::f_zeros([2 * layers, x.size()[0], hidden], (Kind::Float, x.device()))?;
    // cuDNN wants all weights in one piece of memory, and says so at every call; libtorch's own kernels do not.
    let cudnn = tch::Cuda::user_enabled_cudnn();
    tch::Cuda::set_user_enabled_cudnn(false);
    let made = x.f_lstm(&[&start, &start], weights, true, layers, 0.0, true, true, true);
    tch::Cuda::set_user_enabled_cudnn(cudnn);
    let (states, last, _) = made?;
    Ok((states, last))
}

/// One pre-norm Transformer layer over a learned CLS token and `rows` `[S, d]`, without positions (MST, arXiv 2411.15802): 12 heads
/// where the width divides by it, and heads of 32 or one where it does not; a feed-forward of width d with GELU; a final norm.
/// Weights `[S]` are what CLS pays to the slices, mean over the heads, and sum to what it does not pay to itself.
pub(super) fn transformer(parameters: &Parameters, rows: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let dim = rows.size()[1];
    let heads = [12, dim / 32].into_iter().find(|&n| n > 0 && dim % n == 0).unwrap_or(1);
    let get = |name: &str| parameters.of_pooling(name);
    let linear = |x: &Tensor, name: &str| {
        x.f_linear(&get(&format!("{name}.weight"))?, Some(&get(&format!("{name}.bias"))?))
    };
    let norm = |x: &Tensor, name: &str| {
        let (weight, bias) = (get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?);
        x.f_layer_norm([dim], Some(&weight), Some(&bias), 1e-5, false)
    };
    let x = Tensor::f_cat(&[&get("cls")?.f_unsqueeze(0)?, rows], 0)?;
    let parts = linear(&norm(&x, "norm1")?, "qkv")?;
    let [q, k, v] = super::layers::heads(&parts, 1, heads)?;
    // Only CLS leaves the layer.
    let paid = probabilities(&q.f_narrow(2, 0, 1)?, &k)?;
    let mixed = paid.f_matmul(&v)?.f_transpose(1, 2)?.f_reshape([1, dim])?;
    let cls = x.f_narrow(0, 0, 1)?.f_add(&linear(&mixed, "o")?)?;
    let fed = linear(&linear(&norm(&cls, "norm2")?, "fc1")?.f_gelu("none")?, "fc2")?;
    let pooled = norm(&cls.f_add(&fed)?, "norm")?.f_squeeze_dim(0)?;
    let weights = paid.f_mean_dim(1i64, false, None)?.f_flatten(0, -1)?;
    Ok((weights.f_narrow(0, 1, weights.size()[0] - 1)?, pooled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::tests::tiny_network;

    fn pooled_by(pooling: Pooling) -> Parameters {
        let network = tiny_network(3);
        let arch = network.encoder.arch().clone();
        network.parameters.pooled_by(pooling, &arch, 7, Device::Cpu).unwrap()
    }

    fn rows(dim: i64) -> Tensor {
        (Tensor::arange(5 * dim, (Kind::Float, Device::Cpu)) * 0.37).sin().view([5, dim])
    }

    #[test]
    fn an_lstm_is_the_definition_and_depends_on_the_order() {
        let parameters = pooled_by(Pooling::Lstm);
        let dim = parameters.of_pooling("forward.weight_ih").unwrap().size()[1];
        let rows = rows(dim);
        let (weights, found) = lstm(&parameters, &rows).unwrap();
        assert!((weights.sum(None).double_value(&[]) - 1.0).abs() < 1e-6);
        let direction = |name: &str, order: Vec<i64>| {
            let get = |part: &str| parameters.of_pooling(&format!("{name}.{part}")).unwrap();
            let hidden = get("weight_hh").size()[1];
            let mut h = Tensor::zeros([hidden], (Kind::Float, Device::Cpu));
            let mut c = h.zeros_like();
            for s in order {
                let gates = get("weight_ih").mv(&rows.get(s))
                    + get("bias_ih")
                    + get("weight_hh").mv(&h)
                    + get("bias_hh");
                let parts = gates.chunk(4, 0);
                c = parts[1].sigmoid() * &c + parts[0].sigmoid() * parts[2].tanh();
                h = parts[3].sigmoid() * c.tanh();
            }
            h
        };
        let expected = Tensor::cat(
            &[direction("forward", (0..5).collect()), direction("backward", (0..5).rev().collect())],
            0,
        );
        assert!((&found - &expected.narrow(0, 0, dim)).abs().max().double_value(&[]) < 1e-6);
        let (_, turned) = lstm(&parameters, &rows.flip([0])).unwrap();
        assert!((turned - found).abs().max().double_value(&[]) > 1e-4);
        let bound = 1.0 / ((dim + 1) / 2) as f64;
        let largest = parameters.of_pooling("backward.bias_hh").unwrap().abs().max().double_value(&[]);
        assert!(largest <= bound.sqrt() && largest > 0.8 * bound.sqrt(), "{largest}");
    }

    #[test]
    fn a_transformer_does_not_see_the_order() {
        let parameters = pooled_by(Pooling::Transformer);
        let dim = parameters.of_pooling("cls").unwrap().size()[0];
        let rows = rows(dim);
        let (weights, found) = transformer(&parameters, &rows).unwrap();
        assert_eq!((weights.size(), found.size()), (vec![5], vec![dim]));
        let paid = weights.sum(None).double_value(&[]);
        assert!(paid > 0.0 && paid < 1.0, "{paid}");
        let (_, turned) = transformer(&parameters, &rows.flip([0])).unwrap();
        assert!((turned - &found).abs().max().double_value(&[]) < 1e-6);
        // The final norm.
        let mean = found.mean(None).double_value(&[]);
        assert!(mean.abs() < 1e-6, "{mean}");
    }
}
