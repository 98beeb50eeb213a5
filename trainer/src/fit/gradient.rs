use std::sync::Arc;

use tch::{Device, TchError, Tensor};

use crate::data::Slices;
use crate::loss::Loss;
use crate::model::{Network, Parameters};
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
}

/// The mean loss over all known labels of `items` and its gradients, `[P]`, one after the other in the order of
/// `parameters`; `None` where no label is known.
///
/// A worker holds at most `plan.chunk` slices with their activations at a time. Volumes that fit together go through
/// together, forward and backward once.
/// A longer volume is encoded twice but for its last chunk: once without activations to get the loss and its gradient at the
/// embeddings, and then chunk by chunk with that gradient, which gives the same result at a memory that does not grow with
/// its length.
pub fn gradients(
    workers: &Workers,
    parameters: &Parameters,
    mut items: Vec<Item>,
    plan: Plan,
) -> Result<Option<(f64, Tensor)>, TchError> {
    let Plan { loss, chunk, .. } = plan;
    let terms: usize = items.iter().map(|item| loss.terms(&item.targets)).sum();
    if terms == 0 {
        return Ok(None);
    }
    let share = 1.0 / terms as f64;
    items.retain(|item| loss.terms(&item.targets) > 0);
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
        value += more;
        let _ = gradients.f_add_(&part)?;
    }
    let _ = gradients.f_mul_scalar_(1.0 / plan.scale)?;
    Ok(Some((value, gradients)))
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

fn together(network: &Network, items: &[Item], plan: Plan, share: f64) -> Result<(f64, Tensor), TchError> {
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
        losses.push(plan.loss.smoothed_sum(&pooled.logits, &item.targets, plan.smoothing)?);
        start += count;
    }
    let total = Tensor::f_stack(&losses, 0)?.f_sum(None)?.f_mul_scalar(share)?;
    let (gradients, _) = network.parameters.gradients(&total.f_mul_scalar(plan.scale)?, &[])?;
    Ok((total.f_double_value(&[])?, gradients))
}

/// A volume of several chunks: the embeddings of all of them first, of the last one with its activations, which serve for its
/// gradients at once; the others are encoded again.
fn long(network: &Network, item: &Item, plan: Plan, share: f64) -> Result<(f64, Tensor), TchError> {
    let Plan { loss, smoothing, chunk, scale } = plan;
    let device = network.encoder.device();
    let upload = |start: usize| item.slices.tensor(start, chunk.min(item.slices.count - start), device);
    let last = (item.slices.count - 1) / chunk * chunk;
    // What is on a GPU stays there for the second time: a hundredth of what activations take, and slow to bring.
    let mut uploaded = Vec::new();
    let mut embeddings = Vec::new();
    for start in (0..last).step_by(chunk) {
        let _guard = tch::no_grad_guard();
        let slices = upload(start)?;
        embeddings.push(network.embed(&slices)?);
        uploaded.push((device != Device::Cpu).then_some(slices));
    }
    let open = network.embed(&upload(last)?)?;
    embeddings.push(open.f_detach()?);
    let embeddings = Tensor::f_cat(&embeddings, 0)?.f_set_requires_grad(true)?;
    let logits = network.pool(&embeddings)?.logits;
    let total = loss.smoothed_sum(&logits, &item.targets, smoothing)?.f_mul_scalar(share)?;
    let (mut gradients, at_embeddings) =
        network.parameters.gradients(&total.f_mul_scalar(scale)?, &[&embeddings])?;
    let mut backward = |start: usize, part: Tensor| {
        let gradient = at_embeddings[0].f_narrow(0, start as i64, part.size()[0])?;
        let (more, _) = network.parameters.gradients(&part.f_mul(&gradient)?.f_sum(None)?, &[])?;
        gradients.f_add_(&more).map(drop)
    };
    backward(last, open)?;
    for (start, slices) in (0..last).step_by(chunk).zip(uploaded) {
        backward(start, network.embed(&slices.map_or_else(|| upload(start), Ok)?)?)?;
    }
    Ok((total.f_double_value(&[])?, gradients))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::tests::{slices, tiny_network, tiny_network_of};

    fn found(items: &[Item], chunk: usize, threads: usize) -> Option<(f64, Tensor)> {
        let network = tiny_network(5);
        let workers = Workers::new(&network, threads, 8).unwrap();
        gradients(&workers, &network.parameters, items.to_vec(), plan(chunk)).unwrap()
    }

    fn plan(chunk: usize) -> Plan {
        Plan { loss: Loss::default(), smoothing: 0.1, chunk, scale: 1.0 }
    }

    fn item(count: usize, target: Option<bool>) -> Item {
        Item { slices: slices(count, count as u64).into(), targets: vec![target] }
    }

    fn norm(t: &Tensor) -> f64 {
        t.square().sum(None).double_value(&[]).sqrt()
    }

    /// The gradients of the tiny network's parameters, each for itself.
    fn split(flat: &Tensor) -> Vec<Tensor> {
        let lengths: Vec<i64> =
            tiny_network(5).parameters.named.iter().map(|(_, t)| t.numel() as i64).collect();
        flat.split_with_sizes(&lengths, 0)
    }

    fn close(a: &Tensor, b: &Tensor) {
        let off = norm(&(a - b)) / norm(b);
        assert!(off <= 1e-6, "{off}");
        let (a, b) = (split(a), split(b));
        for (a, b) in a.iter().zip(&b) {
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

    /// What libtorch's own backward through the whole volume gives.
    fn plain(item: &Item) -> (f64, Tensor) {
        let network = tiny_network(5);
        let slices = item.slices.tensor(0, item.slices.count, Device::Cpu).unwrap();
        let logits = network.pool(&network.embed(&slices).unwrap()).unwrap().logits;
        let loss = Loss::default().smoothed_sum(&logits, &item.targets, 0.1).unwrap();
        let leaves: Vec<&Tensor> = network.parameters.named.iter().map(|(_, tensor)| tensor).collect();
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        let flat: Vec<Tensor> = gradients.iter().map(|g| g.flatten(0, -1)).collect();
        (loss.double_value(&[]), Tensor::cat(&flat, 0))
    }

    #[test]
    fn a_volume_that_fits_goes_through_once_and_plainly() {
        let item = item(6, Some(true));
        let (expected_loss, expected) = plain(&item);
        for chunk in [6, 64] {
            let (loss, found) = found(std::slice::from_ref(&item), chunk, 1).unwrap();
            // Bit for bit: the same operations in the same order.
            assert!(loss.to_bits() == expected_loss.to_bits() && found == expected, "chunk {chunk}");
        }
        // Encoding twice adds the chunks' gradients in another order.
        let (_, twice) = found(std::slice::from_ref(&item), 2, 1).unwrap();
        assert!(twice != expected);
        close(&twice, &expected);
    }

    #[test]
    fn a_scaled_loss_gives_the_same_gradients() {
        let items = [item(5, Some(true)), item(2, Some(false))];
        for chunk in [2, 7] {
            let network = tiny_network(5);
            let workers = Workers::new(&network, 1, 8).unwrap();
            let scaled = Plan { scale: 1024.0, ..plan(chunk) };
            let (loss, scaled) =
                gradients(&workers, &network.parameters, items.to_vec(), scaled).unwrap().unwrap();
            let (plain_loss, plain) = found(&items, chunk, 1).unwrap();
            // A power of two costs no digit.
            assert!(loss.to_bits() == plain_loss.to_bits() && scaled == plain, "chunk {chunk}");
        }
    }

    #[test]
    fn bf16_rounds_products_and_leaves_the_parameters_alone() {
        let items = [item(4, Some(true)), item(3, Some(false))];
        let (loss, expected) = found(&items, 7, 1).unwrap();
        let tiny = tiny_network(5);
        let encoder = tiny.encoder.with_precision(tch::Kind::BFloat16).unwrap();
        let network = Network { encoder, parameters: tiny.parameters };
        let workers = Workers::new(&network, 1, 8).unwrap();
        let (rounded_loss, rounded) =
            gradients(&workers, &network.parameters, items.to_vec(), plan(7)).unwrap().unwrap();
        assert!((rounded_loss - loss).abs() < 0.02 * loss, "{rounded_loss} {loss}");
        let (rounded, expected) = (split(&rounded), split(&expected));
        for ((name, leaf), (a, b)) in network.parameters.named.iter().zip(rounded.iter().zip(&expected)) {
            assert_eq!((leaf.kind(), a.kind()), (tch::Kind::Float, tch::Kind::Float));
            let off = norm(&(a - b)) / norm(b);
            assert!(off < 0.1, "{name} {off}");
            assert!(off > 1e-5 || name.starts_with("head"), "{name} was not rounded: {off}");
        }
    }

    #[test]
    fn a_batch_is_the_mean_over_its_known_labels() {
        let items = [item(3, Some(true)), item(5, None), item(2, Some(false))];
        let (first, a) = found(&items[..1], 5, 1).unwrap();
        let (last, b) = found(&items[2..], 5, 1).unwrap();
        let mean = (a + b) * 0.5;
        for threads in [1, 3] {
            let (loss, found) = found(&items, 5, threads).unwrap();
            assert!((loss - 0.5 * (first + last)).abs() < 1e-6);
            close(&found, &mean);
        }
        assert!(found(&items[1..2], 5, 1).is_none());
    }

    #[test]
    fn an_unknown_label_gives_no_gradient() {
        let network = tiny_network_of(2, 5);
        let item = Item { slices: slices(4, 4).into(), targets: vec![Some(true), None] };
        let workers = Workers::new(&network, 1, 8).unwrap();
        let plan = Plan { smoothing: 0.0, ..plan(4) };
        let (loss, found) =
            gradients(&workers, &network.parameters, vec![item.clone()], plan).unwrap().unwrap();
        // The focal loss of the known label's logit alone, by libtorch.
        let input = item.slices.tensor(0, 4, Device::Cpu).unwrap();
        let p = network.pool(&network.embed(&input).unwrap()).unwrap().logits.get(0).sigmoid();
        let miss: Tensor = 1.0 - &p;
        let expected: Tensor = p.log() * miss.square() * -0.25;
        assert!((loss - expected.double_value(&[])).abs() < 1e-6);
        let leaves: Vec<&Tensor> = network.parameters.named.iter().map(|(_, tensor)| tensor).collect();
        let expected = Tensor::run_backward(&[&expected], &leaves, false, false);
        let lengths: Vec<i64> = leaves.iter().map(|leaf| leaf.numel() as i64).collect();
        let found = found.split_with_sizes(&lengths, 0);
        for (((name, _), found), expected) in network.parameters.named.iter().zip(&found).zip(&expected) {
            let off = norm(&(found - expected.flatten(0, -1)));
            assert!(off <= 1e-5 * norm(expected), "{name}: {off} of {}", norm(expected));
        }
        let head = |name: &str| {
            let at = network.parameters.named.iter().position(|(n, _)| n == name).unwrap();
            norm(&found[at].view([2, -1]).get(1))
        };
        assert!(head("head.weight") == 0.0 && head("head.bias") == 0.0);
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
