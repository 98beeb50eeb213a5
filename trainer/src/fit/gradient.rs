use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};

use crate::data::{Slices, Study};
use crate::loss::{Loss, pixel};
use crate::model::{Encoding, Factors, Network, Parameters};
use crate::workers::Workers;

/// One training sample.
#[derive(Debug, Clone)]
pub struct Item {
    /// What the network sees.
    pub study: Arc<Study>,
    /// One a label.
    pub targets: Vec<Option<bool>>,
}

/// How gradients are taken.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The loss.
    pub loss: Loss,
    /// Share of every target that is spread over the classes.
    pub smoothing: f64,
    /// Most slices that a worker holds with their activations at a time.
    pub chunk: usize,
    /// Factor on the loss during the backward pass, which is taken out of the gradients again.
    pub scale: f64,
    /// λ of pixel supervision; `None` where masks are not looked at, and there is no decoder.
    pub pixel: Option<f64>,
}

impl Plan {
    /// The item's mask, where it counts.
    fn mask<'a>(&self, item: &'a Item) -> Option<&'a [u8]> {
        self.pixel.and(item.study.mask())
    }
}

/// The losses of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    /// `L_cls + λ L_seg`, of which the gradients are.
    pub total: f64,
    /// `L_seg`: mean over the volumes with a mask, where there are any.
    pub pixel: Option<f64>,
}

/// The losses of `items` and the gradients of their total, `[P]`, one after the other in the order of `parameters`: the mean over
/// all known labels and, with pixel supervision, λ times the mean over the volumes with a mask. `None` where there is neither.
///
/// A worker holds at most `plan.chunk` slices with their activations at a time. Volumes that fit together go through
/// together, forward and backward once.
/// A longer volume is encoded twice but for its last chunk: once without activations to get the loss and its gradient at the
/// embeddings, and then chunk by chunk with that gradient, which gives the same result at a memory that does not grow with
/// its length. With a mask the patch tokens of all slices are held too (4 S N d bytes, twice with their gradient), since the
/// decoder looks across slices.
pub fn gradients(
    workers: &Workers,
    parameters: &Parameters,
    mut items: Vec<Item>,
    plan: Plan,
) -> Result<Option<(Losses, Tensor)>, TchError> {
    let Plan { loss, chunk, .. } = plan;
    let terms: usize = items.iter().map(|item| loss.terms(&item.targets)).sum();
    items.retain(|item| loss.terms(&item.targets) > 0 || plan.mask(item).is_some());
    if items.is_empty() {
        return Ok(None);
    }
    let masks = items.iter().filter(|item| plan.mask(item).is_some()).count();
    let share =
        Share { label: 1.0 / terms.max(1) as f64, mask: plan.pixel.unwrap_or(0.0) / masks.max(1) as f64 };
    let slices: usize = items.iter().map(|item| item.study.count()).sum();
    let groups = groups(items, chunk.min(slices.div_ceil(workers.count())));
    let parts = workers.map(parameters, groups, move |network, group| match group.as_slice() {
        [item] if item.study.count() > chunk => long(network, item, plan, share),
        items => together(network, items, plan, share),
    })?;
    // Added in the order of the groups, whichever was done first.
    let mut parts = parts.into_iter();
    let Some((mut values, mut gradients)) = parts.next() else { return Ok(None) };
    for (more, part) in parts {
        let _ = values.f_add_(&more)?;
        let _ = gradients.f_add_(&part)?;
    }
    let _ = gradients.f_mul_scalar_(1.0 / plan.scale)?;
    // Read only now that all of it is on its way: a GPU would have nothing to do meanwhile.
    let [total, pixel] = [values.f_double_value(&[0])?, values.f_double_value(&[1])?];
    Ok(Some((Losses { total, pixel: (masks > 0).then(|| pixel / masks as f64) }, gradients)))
}

/// What a term counts in the total.
#[derive(Clone, Copy)]
struct Share {
    /// One over the batch's known labels.
    label: f64,
    /// λ over its volumes with a mask.
    mask: f64,
}

/// Losses of one sample: the sum over its labels and, with a mask, that of its voxels. `embeddings` has an entry a view, `patches`
/// are those of the only one.
fn losses(
    network: &Network,
    item: &Item,
    plan: &Plan,
    embeddings: &[Option<Tensor>],
    patches: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>), TchError> {
    let logits = network.pool(embeddings)?.logits;
    let labels = plan.loss.smoothed_sum(&logits, &item.targets, plan.smoothing)?;
    let (Some(mask), Some(patches)) = (plan.mask(item), patches) else { return Ok((labels, None)) };
    let Some(slices) = item.study.views.iter().flatten().next() else { return Ok((labels, None)) };
    let size = slices.size;
    let grid = network.encoder.arch().grid(size);
    let grid =
        grid.ok_or_else(|| TchError::Convert(format!("slices of {size:?} do not divide into patches")))?;
    let shape = [slices.count, size[0], size[1]].map(|n| n as i64);
    let mask = Tensor::f_from_slice(mask)?.f_view_(shape)?.f_to_device(patches.device())?;
    Ok((labels, Some(pixel(&network.parameters.decode(patches, grid)?, &mask)?)))
}

/// The weighted sum of volumes' losses, and what [`gradients`] adds up of it, `[2]`: its value, and the sum of the pixel losses.
fn total(parts: Vec<(Tensor, Option<Tensor>)>, share: Share) -> Result<(Tensor, Tensor), TchError> {
    let (labels, masks): (Vec<Tensor>, Vec<Option<Tensor>>) = parts.into_iter().unzip();
    let masks: Vec<Tensor> = masks.into_iter().flatten().collect();
    let mut total = Tensor::f_stack(&labels, 0)?.f_sum(None)?.f_mul_scalar(share.label)?;
    let mut pixels = total.f_detach()?.f_zeros_like()?;
    if !masks.is_empty() {
        pixels = Tensor::f_stack(&masks, 0)?.f_sum(None)?;
        total = total.f_add(&pixels.f_mul_scalar(share.mask)?)?;
    }
    let values = Tensor::f_stack(&[&total, &pixels], 0)?.f_detach()?.f_to_kind(Kind::Double)?;
    Ok((total, values))
}

/// Neighbours whose slices together are at most `limit`; a longer volume is alone.
fn groups(items: Vec<Item>, limit: usize) -> Vec<Vec<Item>> {
    let (mut groups, mut slices) = (Vec::<Vec<Item>>::new(), 0);
    for item in items {
        let count = item.study.count();
        match groups.last_mut() {
            Some(group) if slices + count <= limit => {
                slices += count;
                group.push(item);
            }
            _ => {
                slices = count;
                groups.push(vec![item]);
            }
        }
    }
    groups
}

fn together(
    network: &Network,
    items: &[Item],
    plan: Plan,
    share: Share,
) -> Result<(Tensor, Tensor), TchError> {
    let device = network.encoder.device();
    let masked = items.iter().any(|item| plan.mask(item).is_some());
    let inputs = network.parameters.inputs();
    let mut embeddings: Vec<Vec<Option<Tensor>>> = items.iter().map(|_| Vec::with_capacity(inputs)).collect();
    let mut patches: Vec<Option<Tensor>> = items.iter().map(|_| None).collect();
    for view in 0..inputs {
        let there = || items.iter().map(|item| item.study.views[view].as_ref());
        let slices = there().flatten().map(|slices| slices.tensor(0, slices.count, device));
        let slices = slices.collect::<Result<Vec<_>, _>>()?;
        let encoded = match slices.as_slice() {
            [] => None,
            [only] => Some(network.encode(view, only, masked)?),
            all => Some(network.encode(view, &Tensor::f_cat(all, 0)?, masked)?),
        };
        let mut start = 0;
        for (item, slices) in there().enumerate() {
            let count = slices.map_or(0, |slices| slices.count as i64);
            let rows = |all: &Tensor| all.f_narrow(0, start, count);
            let encoded = encoded.as_ref().filter(|_| slices.is_some());
            embeddings[item].push(encoded.map(|encoded| rows(&encoded.cls)).transpose()?);
            patches[item] = encoded.and_then(|encoded| encoded.patch.as_ref()).map(rows).transpose()?;
            start += count;
        }
    }
    let all = items.iter().zip(&embeddings).zip(&patches);
    let parts = all
        .map(|((item, embeddings), patches)| losses(network, item, &plan, embeddings, patches.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let (total, values) = total(parts, share)?;
    let (gradients, _) = network.parameters.gradients(&total.f_mul_scalar(plan.scale)?, &[])?;
    Ok((values, gradients))
}

/// Some slices of one view, encoded together.
#[derive(Clone, Copy)]
struct Chunk {
    view: usize,
    start: usize,
    count: usize,
}

impl Chunk {
    /// As few parts of at most `most` slices as there can be, about equally long.
    fn split(self, most: usize) -> impl Iterator<Item = Chunk> {
        let Self { view, start, count } = self;
        let most = count.div_ceil(count.div_ceil(most).max(1)).max(1);
        (0..count).step_by(most).map(move |at| Chunk { view, start: start + at, count: most.min(count - at) })
    }

    /// These rows of a view's.
    fn of(self, all: &Tensor) -> Result<Tensor, TchError> {
        all.f_narrow(0, self.start as i64, self.count as i64)
    }
}

/// One view of a sample that is encoded in chunks.
struct View<'a> {
    slices: &'a Slices,
    /// On a GPU all slices stay there for the second time: a hundredth of what activations take, and slow to bring.
    uploaded: Option<Tensor>,
    /// Made of the parameters.
    factors: Factors,
    /// The same values as leaves, and the sums of the gradients there.
    leaves: Factors,
    sums: Vec<Tensor>,
}

impl<'a> View<'a> {
    fn new(network: &Network, view: usize, slices: &'a Slices) -> Result<Self, TchError> {
        let device = network.encoder.device();
        let factors = network.parameters.factors(view)?;
        let leaves = factors.to_kind(network.encoder.kind())?.leaves()?;
        let uploaded = (device != Device::Cpu).then(|| slices.tensor(0, slices.count, device)).transpose()?;
        let sums = factors.tensors().into_iter().map(Tensor::f_zeros_like).collect::<Result<_, _>>()?;
        Ok(Self { slices, uploaded, factors, leaves, sums })
    }

    fn encode(&self, network: &Network, chunk: Chunk, masked: bool) -> Result<Encoding, TchError> {
        let slices = match &self.uploaded {
            Some(all) => chunk.of(all)?,
            None => self.slices.tensor(chunk.start, chunk.count, Device::Cpu)?,
        };
        network.encoder.encode(&slices, Some(&self.leaves), masked)
    }

    /// Adds the gradients of `total` at the leaves.
    fn backward(&mut self, total: &Tensor) -> Result<(), TchError> {
        let gradients = Tensor::f_run_backward(&[total], &self.leaves.tensors(), false, false)?;
        for (sum, gradient) in self.sums.iter_mut().zip(gradients).filter(|(_, g)| g.defined()) {
            let _ = sum.f_add_(&gradient)?;
        }
        Ok(())
    }

    /// A scalar whose gradients at the parameters are those that the sums make.
    fn carried(&self) -> Result<Tensor, TchError> {
        let flat = |tensor: &Tensor| tensor.f_flatten(0, -1);
        let factors = self.factors.tensors().into_iter().map(flat).collect::<Result<Vec<_>, _>>()?;
        let sums = self.sums.iter().map(flat).collect::<Result<Vec<_>, _>>()?;
        Tensor::f_cat(&factors, 0)?.f_dot(&Tensor::f_cat(&sums, 0)?)
    }
}

/// A sample of several chunks: the embeddings of all of them first, of the last one with its activations, which serve for its
/// gradients at once; the others are encoded again.
fn long(network: &Network, item: &Item, plan: Plan, share: Share) -> Result<(Tensor, Tensor), TchError> {
    let masked = plan.mask(item).is_some();
    let mut views = Vec::with_capacity(item.study.views.len());
    for (view, slices) in item.study.views.iter().enumerate() {
        views.push(slices.as_ref().map(|slices| View::new(network, view, slices)).transpose()?);
    }
    let absent = || TchError::Convert("a sample has no slices".into());
    let whole = |(view, there): (usize, &Option<View<'_>>)| {
        there.as_ref().map(|there| Chunk { view, start: 0, count: there.slices.count })
    };
    let mut whole: Vec<Chunk> = views.iter().enumerate().filter_map(whole).collect();
    let last = whole.last_mut().ok_or_else(absent)?;
    let open = last.split(plan.chunk).last().ok_or_else(absent)?;
    last.count -= open.count;

    let mut embeddings: Vec<Vec<Tensor>> = views.iter().map(|_| Vec::new()).collect();
    let mut patches = Vec::new();
    let at_a_time = network.encoder.forward_chunk(plan.chunk);
    for chunk in whole.iter().flat_map(|part| part.split(at_a_time)) {
        let _guard = tch::no_grad_guard();
        let view = views[chunk.view].as_ref().ok_or_else(absent)?;
        let Encoding { cls, patch, .. } = view.encode(network, chunk, masked)?;
        embeddings[chunk.view].push(cls);
        patches.extend(patch);
    }
    let encoded = views[open.view].as_ref().ok_or_else(absent)?.encode(network, open, masked)?;
    embeddings[open.view].push(encoded.cls.f_detach()?);
    patches.extend(encoded.patch.as_ref().map(Tensor::f_detach).transpose()?);
    // The embeddings of all slices, view by view, and with a mask their patch tokens.
    let held = |rows: Vec<Tensor>| {
        (!rows.is_empty()).then(|| Tensor::f_cat(&rows, 0)?.f_set_requires_grad(true)).transpose()
    };
    let embeddings = embeddings.into_iter().map(held).collect::<Result<Vec<_>, _>>()?;
    let patches = held(patches)?;
    let (total, values) = total(vec![losses(network, item, &plan, &embeddings, patches.as_ref())?], share)?;
    let others: Vec<&Tensor> = embeddings.iter().flatten().chain(&patches).collect();
    let (mut gradients, at_held) = network.parameters.gradients(&total.f_mul_scalar(plan.scale)?, &others)?;
    // Where a view's gradient is among them.
    let place = |view: usize| embeddings[..view].iter().flatten().count();
    let backward = |view: &mut View<'_>, chunk: Chunk, encoded: Encoding| {
        let of = |part: &Tensor, whole: &Tensor| part.f_mul(&chunk.of(whole)?)?.f_sum(None);
        let mut total = of(&encoded.cls, &at_held[place(chunk.view)])?;
        if let (Some(patch), Some(whole)) = (&encoded.patch, at_held.last()) {
            total = total.f_add(&of(patch, whole)?)?;
        }
        drop(encoded);
        view.backward(&total)
    };
    backward(views[open.view].as_mut().ok_or_else(absent)?, open, encoded)?;
    for chunk in whole.into_iter().flat_map(|part| part.split(plan.chunk)) {
        let view = views[chunk.view].as_mut().ok_or_else(absent)?;
        let encoded = view.encode(network, chunk, masked)?;
        backward(view, chunk, encoded)?;
    }
    for view in views.iter().flatten() {
        let (more, _) = network.parameters.gradients(&view.carried()?, &[])?;
        let _ = gradients.f_add_(&more)?;
    }
    Ok((values, gradients))
}

#[cfg(test)]
mod tests;
