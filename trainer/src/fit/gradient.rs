use std::sync::Arc;

use tch::{TchError, Tensor};

use crate::data::Slices;
use crate::loss::Loss;
use crate::model::{Network, Parameters, chunks};
use crate::workers::Workers;

/// One training volume.
#[derive(Debug, Clone)]
pub struct Item {
    /// What the network sees.
    pub slices: Arc<Slices>,
    /// One a label.
    pub targets: Vec<Option<bool>>,
}

/// The mean loss over all known labels of `items` and its gradients in the order of `parameters`; `None` where no label
/// is known.
///
/// A worker holds at most `chunk` slices with their activations at a time. Volumes that fit together go through together.
/// A longer volume is encoded twice: once without activations to get the loss and its gradient at the embeddings, and
/// then chunk by chunk with that gradient, which gives the same result at a memory that does not grow with its length.
pub fn gradients(
    workers: &Workers,
    parameters: &Parameters,
    mut items: Vec<Item>,
    loss: Loss,
    chunk: usize,
) -> Result<Option<(f64, Vec<Tensor>)>, TchError> {
    let terms: usize = items.iter().map(|item| loss.terms(&item.targets)).sum();
    if terms == 0 {
        return Ok(None);
    }
    let share = 1.0 / terms as f64;
    items.retain(|item| loss.terms(&item.targets) > 0);
    let slices: usize = items.iter().map(|item| item.slices.count).sum();
    let groups = groups(items, chunk.min(slices.div_ceil(workers.count())));
    let parts = workers.map(parameters, groups, move |network, group| {
        let value = match group.as_slice() {
            [item] if item.slices.count > chunk => long(network, item, loss, chunk, share)?,
            items => together(network, items, loss, share)?,
        };
        Ok((value, network.parameters.take_gradients()?))
    })?;
    // Added in the order of the groups, whichever was done first.
    let sum = parts.into_iter().map(Ok).reduce(|sum, part| {
        let ((value, mut sum), (more, part)) = (sum?, part?);
        sum.iter_mut().zip(&part).try_for_each(|(sum, part)| sum.f_add_(part).map(drop))?;
        Ok((value + more, sum))
    });
    sum.transpose()
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

fn together(network: &Network, items: &[Item], loss: Loss, share: f64) -> Result<f64, TchError> {
    let device = network.encoder.device();
    let slices = items
        .iter()
        .map(|item| item.slices.tensor(0, item.slices.count, device))
        .collect::<Result<Vec<_>, _>>()?;
    let embeddings = network.embed(&Tensor::f_cat(&slices, 0)?)?;
    let mut start = 0;
    let mut losses = Vec::new();
    for item in items {
        let count = item.slices.count as i64;
        let pooled = network.pool(&embeddings.f_narrow(0, start, count)?)?;
        losses.push(loss.sum(&pooled.logits, &item.targets)?);
        start += count;
    }
    let total = Tensor::f_stack(&losses, 0)?.f_sum(None)?.f_mul_scalar(share)?;
    total.f_backward()?;
    total.f_double_value(&[])
}

fn long(network: &Network, item: &Item, loss: Loss, chunk: usize, share: f64) -> Result<f64, TchError> {
    let device = network.encoder.device();
    let embeddings = {
        let _guard = tch::no_grad_guard();
        chunks(&item.slices, chunk, device, |slices| network.embed(slices))?
    };
    let embeddings = embeddings.f_set_requires_grad(true)?;
    let total = loss.sum(&network.pool(&embeddings)?.logits, &item.targets)?.f_mul_scalar(share)?;
    total.f_backward()?;
    let gradient = embeddings.grad();
    for start in (0..item.slices.count).step_by(chunk) {
        let count = chunk.min(item.slices.count - start);
        let part = network.embed(&item.slices.tensor(start, count, device)?)?;
        let gradient = gradient.f_narrow(0, start as i64, count as i64)?;
        part.f_mul(&gradient)?.f_sum(None)?.f_backward()?;
    }
    total.f_double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::tests::{slices, tiny_network};

    fn found(items: &[Item], chunk: usize, threads: usize) -> Option<(f64, Vec<Tensor>)> {
        let network = tiny_network(5);
        let workers = Workers::new(&network, threads, 8).unwrap();
        gradients(&workers, &network.parameters, items.to_vec(), Loss::default(), chunk).unwrap()
    }

    fn item(count: usize, target: Option<bool>) -> Item {
        Item { slices: slices(count, count as u64).into(), targets: vec![target] }
    }

    fn close(a: &[Tensor], b: &[Tensor]) {
        let norm = |t: &Tensor| t.square().sum(None).double_value(&[]).sqrt();
        let whole =
            |all: &[Tensor]| Tensor::cat(&all.iter().map(|t| t.flatten(0, -1)).collect::<Vec<_>>(), 0);
        let off = norm(&(whole(a) - whole(b))) / norm(&whole(b));
        assert!(off <= 1e-6, "{off}");
        for (a, b) in a.iter().zip(b) {
            assert!(norm(&(a - b)) <= 1e-5 * norm(b), "{} of {}", norm(&(a - b)), norm(b));
        }
        assert!(b.iter().all(|b| norm(b) > 0.0), "a parameter has no gradient");
    }

    #[test]
    fn chunks_give_the_gradients_of_the_whole() {
        let items = [item(7, Some(true))];
        let (plain_loss, plain) = found(&items, 7, 1).unwrap();
        for chunk in [1, 3, 6] {
            let (loss, found) = found(&items, chunk, 1).unwrap();
            assert!((loss - plain_loss).abs() < 1e-6);
            close(&found, &plain);
        }
    }

    #[test]
    fn a_batch_is_the_mean_over_its_known_labels() {
        let items = [item(3, Some(true)), item(5, None), item(2, Some(false))];
        let (first, a) = found(&items[..1], 5, 1).unwrap();
        let (last, b) = found(&items[2..], 5, 1).unwrap();
        let mean: Vec<Tensor> = a.iter().zip(&b).map(|(a, b)| (a + b) * 0.5).collect();
        for threads in [1, 3] {
            let (loss, found) = found(&items, 5, threads).unwrap();
            assert!((loss - 0.5 * (first + last)).abs() < 1e-6);
            close(&found, &mean);
        }
        assert!(found(&items[1..2], 5, 1).is_none());
    }

    #[test]
    fn workers_give_the_same_bits_whichever_is_done_first() {
        let items: Vec<Item> = [5, 1, 4, 2, 6].map(|n| item(n, Some(n % 2 == 0))).into();
        let (loss, gradients) = found(&items, 6, 3).unwrap();
        for _ in 0..3 {
            let (again, same) = found(&items, 6, 3).unwrap();
            assert!(loss.to_bits() == again.to_bits() && gradients == same);
        }
    }

    #[test]
    fn neighbours_share_a_pass_while_they_fit() {
        let items: Vec<Item> = [2, 2, 3, 9, 1].map(|n| item(n, None)).into();
        let sizes: Vec<usize> = groups(items, 4).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }
}
