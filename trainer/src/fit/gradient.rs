use std::sync::Arc;

use tch::{Device, TchError, Tensor};

use crate::data::Slices;
use crate::loss::{Loss, pixel};
use crate::model::{Encoding, Network, Parameters};
use crate::workers::Workers;

/// One training volume.
#[derive(Debug, Clone)]
pub struct Item {
    /// What the network sees.
    pub slices: Arc<Slices>,
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
        self.pixel.and(item.slices.mask.as_deref())
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
    let slices: usize = items.iter().map(|item| item.slices.count).sum();
    let groups = groups(items, chunk.min(slices.div_ceil(workers.count())));
    let parts = workers.map(parameters, groups, move |network, group| match group.as_slice() {
        [item] if item.slices.count > chunk => long(network, item, plan, share),
        items => together(network, items, plan, share),
    })?;
    // Added in the order of the groups, whichever was done first.
    let mut parts = parts.into_iter();
    let Some((mut value, mut gradients)) = parts.next() else { return Ok(None) };
    for (more, part) in parts {
        value.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        let _ = gradients.f_add_(&part)?;
    }
    let _ = gradients.f_mul_scalar_(1.0 / plan.scale)?;
    let [total, pixel] = value;
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

/// Losses of one volume: the sum over its labels and, with a mask, that of its voxels.
fn losses(
    network: &Network,
    item: &Item,
    plan: &Plan,
    embeddings: &Tensor,
    patches: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>), TchError> {
    let logits = network.pool(embeddings)?.logits;
    let labels = plan.loss.smoothed_sum(&logits, &item.targets, plan.smoothing)?;
    let (Some(mask), Some(patches)) = (plan.mask(item), patches) else { return Ok((labels, None)) };
    let size = item.slices.size;
    let grid = network.encoder.arch().grid(size);
    let grid =
        grid.ok_or_else(|| TchError::Convert(format!("slices of {size:?} do not divide into patches")))?;
    let shape = [item.slices.count, size[0], size[1]].map(|n| n as i64);
    let mask = Tensor::f_from_slice(mask)?.f_view_(shape)?.f_to_device(patches.device())?;
    Ok((labels, Some(pixel(&network.parameters.decode(patches, grid)?, &mask)?)))
}

/// The weighted sum of volumes' losses, and what [`gradients`] adds up of it: its value, and the sum of the pixel losses.
fn total(parts: Vec<(Tensor, Option<Tensor>)>, share: Share) -> Result<(Tensor, [f64; 2]), TchError> {
    let (labels, masks): (Vec<Tensor>, Vec<Option<Tensor>>) = parts.into_iter().unzip();
    let masks: Vec<Tensor> = masks.into_iter().flatten().collect();
    let mut total = Tensor::f_stack(&labels, 0)?.f_sum(None)?.f_mul_scalar(share.label)?;
    let mut pixels = 0.0;
    if !masks.is_empty() {
        let sum = Tensor::f_stack(&masks, 0)?.f_sum(None)?;
        pixels = sum.f_double_value(&[])?;
        total = total.f_add(&sum.f_mul_scalar(share.mask)?)?;
    }
    let value = total.f_double_value(&[])?;
    Ok((total, [value, pixels]))
}

/// Neighbours whose slices together are at most `limit`; a longer volume is alone.
fn groups(items: Vec<Item>, limit: usize) -> Vec<Vec<Item>> {
    let (mut groups, mut slices) = (Vec::<Vec<Item>>::new(), 0);
    for item in items {
        let count = item.slices.count;
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
) -> Result<([f64; 2], Tensor), TchError> {
    let device = network.encoder.device();
    let slices = items
        .iter()
        .map(|item| item.slices.tensor(0, item.slices.count, device))
        .collect::<Result<Vec<_>, _>>()?;
    let masked = items.iter().any(|item| plan.mask(item).is_some());
    let Encoding { cls, patch, .. } = network.encode(&Tensor::f_cat(&slices, 0)?, masked)?;
    let mut start = 0;
    let mut parts = Vec::new();
    for item in items {
        let count = item.slices.count as i64;
        let patches = patch.as_ref().map(|patch| patch.f_narrow(0, start, count)).transpose()?;
        parts.push(losses(network, item, &plan, &cls.f_narrow(0, start, count)?, patches.as_ref())?);
        start += count;
    }
    let (total, values) = total(parts, share)?;
    let (gradients, _) = network.parameters.gradients(&total.f_mul_scalar(plan.scale)?, &[])?;
    Ok((values, gradients))
}

/// A volume of several chunks: the embeddings of all of them first, of the last one with its activations, which serve for its
/// gradients at once; the others are encoded again.
fn long(network: &Network, item: &Item, plan: Plan, share: Share) -> Result<([f64; 2], Tensor), TchError> {
    let (chunk, masked) = (plan.chunk, plan.mask(item).is_some());
    let device = network.encoder.device();
    let upload = |start: usize| item.slices.tensor(start, chunk.min(item.slices.count - start), device);
    let last = (item.slices.count - 1) / chunk * chunk;
    // What is on a GPU stays there for the second time: a hundredth of what activations take, and slow to bring.
    let mut uploaded = Vec::new();
    let (mut embeddings, mut patches) = (Vec::new(), Vec::new());
    for start in (0..last).step_by(chunk) {
        let _guard = tch::no_grad_guard();
        let slices = upload(start)?;
        let Encoding { cls, patch, .. } = network.encode(&slices, masked)?;
        embeddings.push(cls);
        patches.extend(patch);
        uploaded.push((device != Device::Cpu).then_some(slices));
    }
    let open = network.encode(&upload(last)?, masked)?;
    embeddings.push(open.cls.f_detach()?);
    patches.extend(open.patch.as_ref().map(Tensor::f_detach).transpose()?);
    // The embeddings and, with a mask, the patch tokens of all slices.
    let mut held = vec![Tensor::f_cat(&embeddings, 0)?.f_set_requires_grad(true)?];
    drop(embeddings);
    if masked {
        held.push(Tensor::f_cat(&patches, 0)?.f_set_requires_grad(true)?);
    }
    drop(patches);
    let (total, values) = total(vec![losses(network, item, &plan, &held[0], held.get(1))?], share)?;
    let others: Vec<&Tensor> = held.iter().collect();
    let (mut gradients, at_held) = network.parameters.gradients(&total.f_mul_scalar(plan.scale)?, &others)?;
    let mut backward = |start: usize, part: Encoding| {
        let count = part.cls.size()[0];
        let of = |(part, whole): (&Tensor, &Tensor)| {
            part.f_mul(&whole.f_narrow(0, start as i64, count)?)?.f_sum(None)
        };
        let parts = std::iter::once(&part.cls).chain(part.patch.as_ref()).zip(&at_held).map(of);
        let sum = Tensor::f_stack(&parts.collect::<Result<Vec<_>, _>>()?, 0)?.f_sum(None)?;
        let (more, _) = network.parameters.gradients(&sum, &[])?;
        gradients.f_add_(&more).map(drop)
    };
    backward(last, open)?;
    for (start, slices) in (0..last).step_by(chunk).zip(uploaded) {
        backward(start, network.encode(&slices.map_or_else(|| upload(start), Ok)?, masked)?)?;
    }
    Ok((values, gradients))
}

#[cfg(test)]
mod tests;
