use tch::{TchError, Tensor};

use super::efficientnet::{EfficientNet, Sizes};
use super::layers::Linear;
use super::lstm::Lstm;
use super::weights::Maker;
use super::{Rival, Weights};

/// Units of the LSTM in each direction.
const HIDDEN: i64 = 256;

/// A 2.5D network as those that won RSNA's challenges on Kaggle: an EfficientNetV2 looks at each slice together with its neighbours,
/// two layers of a bidirectional LSTM run along the slices, and two linear layers read the maximum over them, element by element,
/// since a finding may be in few slices.
pub(super) struct SliceCnn {
    weights: Weights,
    grey: bool,
    features: EfficientNet,
    lstm: Lstm,
    hidden: Linear,
    head: Linear,
}

impl SliceCnn {
    pub(super) fn new(
        mut make: Maker,
        sizes: &Sizes<'_>,
        labels: usize,
        grey: bool,
    ) -> Result<Self, TchError> {
        let features = EfficientNet::new(&mut make, sizes)?;
        let lstm = Lstm::new(&mut make, "lstm", [sizes.features, HIDDEN, 2])?;
        let hidden = Linear::new(&mut make, "head.0", [2 * HIDDEN, HIDDEN])?;
        let head = Linear::new(&mut make, "head.2", [HIDDEN, labels as i64])?;
        Ok(Self { weights: make.finish(), grey, features, lstm, hidden, head })
    }
}

impl Rival for SliceCnn {
    fn forward(&self, volumes: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let (b, s, c, h, w) = volumes.size5()?;
        let slices = if self.grey { neighbours(volumes)? } else { volumes.shallow_clone() };
        let features = self.features.apply(&slices.f_reshape([b * s, c, h, w])?, train)?;
        let states = self.lstm.apply(&features.f_view([b, s, -1])?)?;
        let pooled = states.f_amax(1i64, false)?;
        self.head.apply(&self.hidden.apply(&pooled)?.f_relu()?)
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// Volumes `[B, S, 3, H, W]` whose channels show the same → the slice before, the slice itself and the one after it as channels;
/// at the ends the slice itself stands in for what is missing. Each channel keeps its normalisation.
pub(super) fn neighbours(volumes: &Tensor) -> Result<Tensor, TchError> {
    let count = volumes.size()[1];
    let channel = |c: i64| volumes.f_narrow(2, c, 1);
    let (before, after) = (channel(0)?, channel(2)?);
    let before = Tensor::f_cat(&[before.f_narrow(1, 0, 1)?, before.f_narrow(1, 0, count - 1)?], 1)?;
    let after = Tensor::f_cat(&[after.f_narrow(1, 1, count - 1)?, after.f_narrow(1, count - 1, 1)?], 1)?;
    Tensor::f_cat(&[before, channel(1)?, after], 2)
}
