use tch::{TchError, Tensor};

use crate::data::Slices;
use crate::loss::Loss;
use crate::model::{Network, chunks};

/// One training volume.
pub struct Item<'a> {
    /// What the network sees.
    pub slices: &'a Slices,
    /// One a label.
    pub targets: &'a [Option<bool>],
}

/// Adds the gradients of the mean loss over all known labels of `items` to the parameters, and returns that loss;
/// `None` where no label is known.
///
/// At most `chunk` slices are held with their activations at a time. Volumes that fit together go through together. A
/// longer volume is encoded twice: once without activations to get the loss and its gradient at the embeddings, and then
/// chunk by chunk with that gradient, which gives the same result at a memory that does not grow with its length.
pub fn accumulate(
    network: &Network,
    items: &[Item<'_>],
    loss: Loss,
    chunk: usize,
) -> Result<Option<f64>, TchError> {
    let terms: usize = items.iter().map(|item| loss.terms(item.targets)).sum();
    if terms == 0 {
        return Ok(None);
    }
    let share = 1.0 / terms as f64;
    let known: Vec<&Item<'_>> = items.iter().filter(|item| loss.terms(item.targets) > 0).collect();
    let mut total = 0.0;
    for group in groups(&known, chunk) {
        total += match group {
            [item] if item.slices.count > chunk => long(network, item, loss, chunk, share)?,
            _ => together(network, group, loss, share)?,
        };
    }
    Ok(Some(total))
}

/// Neighbours whose slices together are at most `chunk`; a longer volume is alone.
fn groups<'a, 'b>(items: &'a [&'b Item<'b>], chunk: usize) -> Vec<&'a [&'b Item<'b>]> {
    let (mut groups, mut start, mut slices) = (Vec::new(), 0, 0);
    for (i, item) in items.iter().enumerate() {
        if i > start && slices + item.slices.count > chunk {
            groups.push(&items[start..i]);
            (start, slices) = (i, 0);
        }
        slices += item.slices.count;
    }
    groups.push(&items[start..]);
    groups
}

fn together(network: &Network, items: &[&Item<'_>], loss: Loss, share: f64) -> Result<f64, TchError> {
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
        losses.push(loss.sum(&pooled.logits, item.targets)?);
        start += count;
    }
    let total = Tensor::f_stack(&losses, 0)?.f_sum(None)?.f_mul_scalar(share)?;
    total.f_backward()?;
    total.f_double_value(&[])
}

fn long(network: &Network, item: &Item<'_>, loss: Loss, chunk: usize, share: f64) -> Result<f64, TchError> {
    let device = network.encoder.device();
    let embeddings = {
        let _guard = tch::no_grad_guard();
        chunks(item.slices, chunk, device, |slices| network.embed(slices))?
    };
    let embeddings = embeddings.f_set_requires_grad(true)?;
    let total = loss.sum(&network.pool(&embeddings)?.logits, item.targets)?.f_mul_scalar(share)?;
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

    fn gradients(items: &[Item<'_>], chunk: usize) -> (f64, Vec<Tensor>) {
        let network = tiny_network(5);
        let loss = accumulate(&network, items, Loss::default(), chunk).unwrap().unwrap();
        (loss, network.parameters.named.iter().map(|(_, tensor)| tensor.grad().copy()).collect())
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
        let volume = slices(7, 1);
        let item = || [Item { slices: &volume, targets: &[Some(true)] }];
        let (plain_loss, plain) = gradients(&item(), 7);
        for chunk in [1, 3, 6] {
            let (loss, found) = gradients(&item(), chunk);
            assert!((loss - plain_loss).abs() < 1e-6);
            close(&found, &plain);
        }
    }

    #[test]
    fn a_batch_is_the_mean_over_its_known_labels() {
        let volumes = [slices(3, 1), slices(5, 2), slices(2, 3)];
        let targets: [&[Option<bool>]; 3] = [&[Some(true)], &[None], &[Some(false)]];
        let items = |range: std::ops::Range<usize>| -> Vec<Item<'_>> {
            range.map(|i| Item { slices: &volumes[i], targets: targets[i] }).collect()
        };
        let (loss, found) = gradients(&items(0..3), 5);
        let (first, a) = gradients(&items(0..1), 5);
        let (last, b) = gradients(&items(2..3), 5);
        assert!((loss - 0.5 * (first + last)).abs() < 1e-6);
        close(&found, &a.iter().zip(&b).map(|(a, b)| (a + b) * 0.5).collect::<Vec<_>>());
        let network = tiny_network(5);
        assert_eq!(accumulate(&network, &items(1..2), Loss::default(), 5).unwrap(), None);
    }

    #[test]
    fn neighbours_share_a_pass_while_they_fit() {
        let volumes: Vec<Slices> = [2, 2, 3, 9, 1].into_iter().map(|n| slices(n, n as u64)).collect();
        let items: Vec<Item<'_>> = volumes.iter().map(|slices| Item { slices, targets: &[None] }).collect();
        let items: Vec<&Item<'_>> = items.iter().collect();
        let sizes: Vec<usize> = groups(&items, 4).iter().map(|group| group.len()).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }
}
