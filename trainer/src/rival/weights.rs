use tch::{Device, Kind, TchError, Tensor};

use crate::model::gradients;
use crate::random::{Draw, Purpose, generator};

/// The tensors of a network that is fitted whole.
pub struct Weights {
    /// Leaves that ask for gradients, named as in the PyTorch module that the network follows.
    named: Vec<(String, Tensor)>,
    /// Running means and variances of the batch norms, which steps do not move.
    running: Vec<(String, Tensor)>,
}

impl Weights {
    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.named.iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// The trainable tensors, in the order of the gradients.
    pub fn named(&self) -> &[(String, Tensor)] {
        &self.named
    }

    /// All gradients of `total`, one after the other in the order of [`Weights::named`], `[P]`; and those of `others`.
    pub fn gradients(&self, total: &Tensor, others: &[&Tensor]) -> Result<(Tensor, Vec<Tensor>), TchError> {
        gradients(&self.named, total, others)
    }

    /// The value of `loss`, a scalar made of `rows`, and its gradients, `[P]`, where activations are held of one of `parts` at a time.
    /// `rows` are what `forward` makes of all parts, a row for each of their first axis, made without activations; each part goes through
    /// once more with the gradient at its rows, which gives the same as long as it does not look at other parts.
    pub(super) fn gradients_by_parts(
        &self,
        rows: &Tensor,
        parts: &[Tensor],
        forward: impl Fn(&Tensor) -> Result<Tensor, TchError>,
        loss: impl Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let rows = rows.f_detach()?.f_set_requires_grad(true)?;
        let value = loss(&rows)?;
        let (mut flat, at_rows) = self.gradients(&value, &[&rows])?;
        let lengths: Vec<i64> = parts.iter().map(|part| part.size()[0]).collect();
        for (part, at) in parts.iter().zip(at_rows[0].f_split_with_sizes(lengths, 0)?) {
            let carried = forward(part)?.f_mul(&at)?.f_sum(Kind::Float)?;
            let _ = flat.f_add_(&self.gradients(&carried, &[])?.0)?;
        }
        Ok((value.f_detach()?, flat))
    }

    /// Copies of all values, running statistics too.
    pub fn copy(&self) -> Result<Vec<Tensor>, TchError> {
        self.all().map(|(_, tensor)| tensor.f_detach()?.f_detach_copy()).collect()
    }

    /// Puts back what [`Weights::copy`] gave.
    pub fn restore(&self, values: &[Tensor]) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        self.all().zip(values).try_for_each(|((_, tensor), value)| tensor.shallow_clone().f_copy_(value))
    }

    /// Trainable tensors and running statistics.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.named.iter().chain(&self.running).map(|(name, tensor)| (name.as_str(), tensor))
    }
}

/// Makes the weights of a network, one after the other; each one's values follow from the seed and its place.
pub(super) struct Maker {
    weights: Weights,
    seed: u64,
    device: Device,
}

impl Maker {
    pub(super) fn new(seed: u64, device: Device) -> Self {
        Self { weights: Weights { named: Vec::new(), running: Vec::new() }, seed, device }
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// A trainable tensor.
    pub(super) fn leaf(&mut self, name: String, dims: &[i64], draw: Draw) -> Result<Tensor, TchError> {
        let count = dims.iter().product::<i64>() as usize;
        let mut rng = generator(self.seed, Purpose::Init, 0, self.weights.named.len() as u64);
        let values = draw.values(count, &mut rng);
        let tensor = Tensor::f_from_slice(&values)?.f_reshape(dims)?.f_to_device(self.device)?;
        let tensor = tensor.f_set_requires_grad(true)?;
        self.adopt(name, &tensor);
        Ok(tensor)
    }

    /// Takes a leaf that there is already.
    pub(super) fn adopt(&mut self, name: String, tensor: &Tensor) {
        self.weights.named.push((name, tensor.shallow_clone()));
    }

    /// A running statistic of `channels` values.
    pub(super) fn running(&mut self, name: String, channels: i64, value: f64) -> Result<Tensor, TchError> {
        let tensor = Tensor::f_full([channels], value, (Kind::Float, self.device))?;
        self.weights.running.push((name, tensor.shallow_clone()));
        Ok(tensor)
    }

    pub(super) fn finish(self) -> Weights {
        self.weights
    }
}
