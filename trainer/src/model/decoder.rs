//! The decoder of pixel supervision: patch tokens of all slices of a volume → a logit a token of being in the mask.
//!
//! The tokens are a volume `[d, S, gh, gw]`: 1×1×1 convolution d → c, GELU, 3×3×3 convolution c → c, GELU, 1×1×1 convolution
//! c → 1. It is there to give the factors a gradient from masks, and small, so that what it cannot say itself the backbone has
//! to learn to say; upsampling is left to the [loss](crate::loss::pixel). A fit has it, a plugin does not.

use runtime::backbone::Arch;
use tch::{Device, TchError, Tensor};

use super::parameters::{Parameters, leaf};
use crate::random::{Draw, Purpose, generator};

/// What the names of a decoder's parameters begin with.
pub(crate) const PREFIX: &str = "decoder.";

/// Share of voxels that is inside at the start; from one half, the many voxels outside would rule the first steps
/// (arXiv 1708.02002, section 3.3).
const PRIOR: f32 = 0.01;

/// Names, shapes and fan-in of the parameters.
fn shapes(dim: usize, width: usize) -> [(&'static str, Vec<usize>, usize); 6] {
    [
        ("reduce.weight", vec![width, dim], dim),
        ("reduce.bias", vec![width], dim),
        ("mix.weight", vec![width, width, 3, 3, 3], 27 * width),
        ("mix.bias", vec![width], 27 * width),
        ("voxel.weight", vec![1, width], width),
        ("voxel.bias", vec![1], width),
    ]
}

impl Parameters {
    /// The same parameters and a decoder of `width` channels behind them, uniform in ±1/√fan-in as libtorch has it; its last
    /// bias gives [`PRIOR`]. The other parameters are what they are without one.
    pub fn with_decoder(
        mut self,
        arch: &Arch,
        width: usize,
        seed: u64,
        device: Device,
    ) -> Result<Self, TchError> {
        for (name, dims, fan_in) in shapes(arch.dim, width) {
            let mut rng = generator(seed, Purpose::Init, 0, self.named.len() as u64);
            let bound = 1.0 / (fan_in as f32).sqrt();
            let draw = match name {
                "voxel.bias" => Draw::Fill(-((1.0 - PRIOR) / PRIOR).ln()),
                _ => Draw::Uniform(bound.into()),
            };
            let values = draw.values(dims.iter().product(), &mut rng);
            self.named.push((format!("{PREFIX}{name}"), leaf(&dims, &values, device)?));
        }
        Ok(self)
    }

    /// Patch tokens `[S, N, d]` of one volume, on a grid `[gh, gw]` → logits `[S, gh, gw]`.
    pub fn decode(&self, tokens: &Tensor, [gh, gw]: [usize; 2]) -> Result<Tensor, TchError> {
        let get = |name: &str| self.get(&format!("{PREFIX}{name}"));
        let linear = |x: &Tensor, name: &str| {
            x.f_linear(&get(&format!("{name}.weight"))?, Some(&get(&format!("{name}.bias"))?))
        };
        let slices = tokens.size()[0];
        let x = linear(tokens, "reduce")?.f_gelu("none")?;
        // [S, N, c] → [1, c, S, gh, gw]
        let x = x.f_permute([2, 0, 1])?.f_reshape([1, -1, slices, gh as i64, gw as i64])?;
        let x = x.f_conv3d(&get("mix.weight")?, Some(&get("mix.bias")?), 1, 1, 1, 1)?.f_gelu("none")?;
        linear(&x.f_squeeze_dim(0)?.f_permute([1, 2, 3, 0])?, "voxel")?.f_squeeze_dim(-1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::tests::tiny_network;

    const WIDTH: usize = 5;

    fn with_decoder(seed: u64) -> (Parameters, usize) {
        let network = tiny_network(3);
        let arch = network.encoder.arch().clone();
        (network.parameters.with_decoder(&arch, WIDTH, seed, Device::Cpu).unwrap(), arch.dim)
    }

    fn tokens(slices: usize, n: usize, dim: usize) -> Tensor {
        let mut rng = generator(2, Purpose::Init, 7, 7);
        let values = Draw::Uniform(1.0).values(slices * n * dim, &mut rng);
        Tensor::from_slice(&values).view([slices as i64, n as i64, dim as i64])
    }

    /// Sums over neighbours written out; GELU by the error function.
    #[test]
    fn logits_are_those_of_the_three_convolutions() {
        let (parameters, dim) = with_decoder(1);
        let (s, [gh, gw]) = (3, [2, 4]);
        let tokens = tokens(s, gh * gw, dim);
        let found = parameters.decode(&tokens, [gh, gw]).unwrap();
        assert_eq!(found.size(), [s as i64, gh as i64, gw as i64]);
        let of = |name: &str| -> Vec<f64> {
            Vec::try_from(parameters.get(&format!("decoder.{name}")).unwrap().detach().flatten(0, -1))
                .unwrap()
        };
        let x: Vec<f64> = Vec::try_from(tokens.flatten(0, -1)).unwrap();
        let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (w, b) = (of("reduce.weight"), of("reduce.bias"));
        let reduced: Vec<Vec<f64>> = x
            .chunks_exact(dim)
            .map(|x| (0..WIDTH).map(|c| gelu(dot(&w[c * dim..][..dim], x) + b[c])).collect())
            .collect();
        let (w, b, v, last) = (of("mix.weight"), of("mix.bias"), of("voxel.weight"), of("voxel.bias"));
        for (z, y, x) in (0..s).flat_map(|z| (0..gh).flat_map(move |y| (0..gw).map(move |x| (z, y, x)))) {
            let mixed: Vec<f64> = (0..WIDTH)
                .map(|out| {
                    let mut sum = b[out];
                    for (i, [dz, dy, dx]) in
                        (0..27).map(|i| (i, [i / 9, i / 3 % 3, i % 3])).filter(|(_, [dz, dy, dx])| {
                            (1..=s).contains(&(z + dz))
                                && (1..=gh).contains(&(y + dy))
                                && (1..=gw).contains(&(x + dx))
                        })
                    {
                        let token = &reduced[((z + dz - 1) * gh + y + dy - 1) * gw + x + dx - 1];
                        sum += (0..WIDTH).map(|c| w[(out * WIDTH + c) * 27 + i] * token[c]).sum::<f64>();
                    }
                    gelu(sum)
                })
                .collect();
            let expected = dot(&mixed, &v) + last[0];
            let found = found.double_value(&[z as i64, y as i64, x as i64]);
            assert!((found - expected).abs() < 1e-5, "{z} {y} {x}: {found} {expected}");
        }
    }

    #[test]
    fn the_decoder_changes_no_other_parameter_and_is_not_counted() {
        let plain = tiny_network(3).parameters;
        let (with, _) = with_decoder(1);
        let (before, after) = (plain.to_stored().unwrap(), with.to_stored().unwrap());
        assert!(before.iter().all(|(name, tensor)| after[name] == *tensor));
        assert_eq!(after.keys().filter(|name| name.starts_with(PREFIX)).count(), 6);
        assert_eq!((with.count(), after.len()), (plain.count(), before.len() + 6));
        assert_eq!(with_decoder(1).0.to_stored().unwrap(), after);
        assert_ne!(with_decoder(2).0.to_stored().unwrap()["decoder.mix.weight"], after["decoder.mix.weight"]);
        let share = 1.0 / (1.0 + (-after["decoder.voxel.bias"].data[0]).exp());
        assert!((share - 0.01).abs() < 1e-6, "{share}");
    }
}
