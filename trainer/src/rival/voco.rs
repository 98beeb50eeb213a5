use firmware_config::Normalize;
use tch::{TchError, Tensor};

use super::image::{image, rounded_up};
use super::layers::{Linear, pooled};
use super::swin::Swin;
use super::unet::{Residual, Up};
use super::weights::Maker;
use super::{Rival, Weights};

/// Channels after the patch embedding of the smallest of the published networks, VoCo-B; L has 96 and H 192.
pub(super) const WIDTH: i64 = 48;

/// The network of VoCo (Wu et al., arXiv 2402.17300 and 2410.09890), a Swin UNETR of the second version (Hatamizadeh et al., arXiv
/// 2201.01266; MONAI's `use_v2`), with the head that VoCo's own classification of CC-CCII puts on it: the mean over all voxels of what
/// the decoder gives, and a linear layer. There is neither dropout nor stochastic depth, as there.
///
/// It sees the channel values before the recipe's normalisation, as a window of CT maps them to 0 to 1; its pre-training had −175 to
/// 250 HU. Files of its pre-training without labels (`VoCo_B_SSL_head`) hold the encoder, those with labels (`VoComni_B`) the decoder too. Sizes
/// that are no multiples of 32 are resampled; VoCo doubles its thin volumes along their slices instead.
pub(super) struct Voco {
    weights: Weights,
    grey: bool,
    /// Of the recipe's normalisation, `[3, 1, 1]`.
    mean: Tensor,
    std: Tensor,
    swin: Swin,
    /// For the image, what the embedding and two stages gave, and what the last stage gave.
    encoders: [Residual; 5],
    /// From the coarsest to the image's size.
    decoders: [Up; 5],
    head: Linear,
}

impl Voco {
    /// With `width` channels after the patch embedding, a multiple of three.
    pub(super) fn new(
        mut make: Maker,
        width: i64,
        labels: usize,
        grey: bool,
        normalize: &Normalize,
    ) -> Result<Self, TchError> {
        let (mean, std) = normalize.mean_std();
        let [mean, std] = [mean, std]
            .map(|each| Tensor::f_from_slice(&each)?.f_view([3, 1, 1])?.f_to_device(make.device()));
        let channels = if grey { 1 } else { 3 };
        let swin = Swin::new(&mut make, "swinViT", [channels, width])?;
        let mut encoder =
            |n: usize, channels: [i64; 2]| Residual::new(&mut make, &format!("encoder{n}.layer"), channels);
        let encoders = [
            encoder(1, [channels, width])?,
            encoder(2, [width; 2])?,
            encoder(3, [2 * width; 2])?,
            encoder(4, [4 * width; 2])?,
            encoder(10, [16 * width; 2])?,
        ];
        let mut decoder = |n: usize, channels: [i64; 2]| Up::new(&mut make, &format!("decoder{n}"), channels);
        let decoders = [
            decoder(5, [16 * width, 8 * width])?,
            decoder(4, [8 * width, 4 * width])?,
            decoder(3, [4 * width, 2 * width])?,
            decoder(2, [2 * width, width])?,
            decoder(1, [width; 2])?,
        ];
        let head = Linear::new(&mut make, "head", [width, labels as i64])?;
        Ok(Self { weights: make.finish(), grey, mean: mean?, std: std?, swin, encoders, decoders, head })
    }

    /// Images `[B, C, S, H, W]` → what the decoder gives, `[B, width, S, H, W]`.
    fn decoded(&self, image: &Tensor) -> Result<Tensor, TchError> {
        let hidden = self.swin.apply(image)?;
        let [first, second, third, fourth, last] = &self.encoders;
        let skips = [
            hidden[3].shallow_clone(),
            fourth.apply(&hidden[2])?,
            third.apply(&hidden[1])?,
            second.apply(&hidden[0])?,
            first.apply(image)?,
        ];
        let mut x = last.apply(&hidden[4])?;
        for (decoder, skip) in self.decoders.iter().zip(&skips) {
            x = decoder.apply(&x, skip)?;
        }
        Ok(x)
    }
}

impl Rival for Voco {
    fn forward(&self, volumes: &Tensor, _train: bool) -> Result<Tensor, TchError> {
        let channels = volumes.f_mul(&self.std)?.f_add(&self.mean)?;
        let image = image(&channels, self.grey, rounded_up)?;
        self.head.apply(&pooled(&self.decoded(&image)?)?)
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Volumes go through one at a time, twice where there are several: without activations to get the loss and its gradient at the
    /// logits, then with that gradient, which gives the same, as no norm looks at other volumes.
    fn gradients(
        &self,
        volumes: &Tensor,
        loss: &dyn Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let parts = volumes.f_split(1, 0)?;
        if let [one] = parts.as_slice() {
            let value = loss(&self.forward(one, true)?)?;
            return Ok((value.f_detach()?, self.weights.gradients(&value, &[])?.0));
        }
        let forward = |part: &Tensor| self.forward(part, true);
        let logits = tch::no_grad(|| parts.iter().map(forward).collect::<Result<Vec<_>, _>>())?;
        self.weights.gradients_by_parts(&Tensor::f_cat(&logits, 0)?, &parts, forward, loss)
    }

    fn resampled(&self, size: [usize; 3]) -> Option<[usize; 3]> {
        rounded_up(size)
    }
}
