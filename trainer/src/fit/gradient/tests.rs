use super::*;
use crate::fit::tests::{slices, study, tiny_network, tiny_network_of};
use crate::model::Pooling;

fn found(items: &[Item], chunk: usize, threads: usize) -> Option<(f64, Tensor)> {
    let network = tiny_network(5);
    let workers = Workers::new(&network, threads, 8).unwrap();
    let made = gradients(&workers, &network.parameters, items.to_vec(), plan(chunk)).unwrap();
    made.map(|(losses, gradients)| (losses.total, gradients))
}

fn plan(chunk: usize) -> Plan {
    Plan { loss: Loss::default(), smoothing: 0.1, chunk, scale: 1.0, pixel: None }
}

fn item(count: usize, target: Option<bool>) -> Item {
    Item { study: study(count, count as u64).into(), targets: vec![target] }
}

fn norm(t: &Tensor) -> f64 {
    t.square().sum(None).double_value(&[]).sqrt()
}

/// The gradients of the tiny network's parameters, each for itself.
fn split(flat: &Tensor) -> Vec<Tensor> {
    let lengths: Vec<i64> = tiny_network(5).parameters.named.iter().map(|(_, t)| t.numel() as i64).collect();
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

/// The slices of an item's only view.
fn only(item: &Item) -> &Slices {
    item.study.views[0].as_ref().unwrap()
}

fn logits(network: &Network, slices: &Tensor) -> Tensor {
    network.pool(&[Some(network.encode(0, slices, false).unwrap().cls)]).unwrap().logits
}

/// What libtorch's own backward through the whole volume gives.
fn plain(item: &Item) -> (f64, Tensor) {
    let network = tiny_network(5);
    let slices = only(item).tensor(0, only(item).count, Device::Cpu).unwrap();
    let logits = logits(&network, &slices);
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
        assert!(loss.total.to_bits() == plain_loss.to_bits() && scaled == plain, "chunk {chunk}");
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
    let rounded_loss = rounded_loss.total;
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
    let item = Item { study: study(4, 4).into(), targets: vec![Some(true), None] };
    let workers = Workers::new(&network, 1, 8).unwrap();
    let plan = Plan { smoothing: 0.0, ..plan(4) };
    let (losses, found) =
        gradients(&workers, &network.parameters, vec![item.clone()], plan).unwrap().unwrap();
    // The focal loss of the known label's logit alone, by libtorch.
    let input = only(&item).tensor(0, 4, Device::Cpu).unwrap();
    let p = logits(&network, &input).get(0).sigmoid();
    let miss: Tensor = 1.0 - &p;
    let expected: Tensor = p.log() * miss.square() * -0.25;
    assert!((losses.total - expected.double_value(&[])).abs() < 1e-6);
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

const WEIGHT: f64 = 0.7;

/// The tiny network with a decoder.
fn with_decoder() -> Network {
    let Network { encoder, parameters } = tiny_network(5);
    let parameters = parameters.with_decoder(encoder.arch(), 6, 5, Device::Cpu).unwrap();
    Network { encoder, parameters }
}

/// With a box in two slices as its mask.
fn masked(mut item: Item) -> Item {
    let mut slices = only(&item).clone();
    let inside = |i: usize| {
        let [s, y, x] = [i / (28 * 42), i / 42 % 28, i % 42];
        (1..3).contains(&s) && (5..15).contains(&y) && (10..31).contains(&x)
    };
    slices.mask = Some((0..slices.count * 28 * 42).map(|i| u8::from(inside(i))).collect());
    item.study = Study::of(slices).into();
    item
}

fn supervised(items: &[Item], chunk: usize, threads: usize) -> (Losses, Vec<Tensor>) {
    let network = with_decoder();
    let workers = Workers::new(&network, threads, 8).unwrap();
    let plan = Plan { pixel: Some(WEIGHT), ..plan(chunk) };
    let (losses, flat) = gradients(&workers, &network.parameters, items.to_vec(), plan).unwrap().unwrap();
    let lengths: Vec<i64> = network.parameters.named.iter().map(|(_, t)| t.numel() as i64).collect();
    (losses, flat.split_with_sizes(&lengths, 0))
}

fn all_close(found: &[Tensor], expected: &[Tensor]) {
    for ((name, _), (a, b)) in with_decoder().parameters.named.iter().zip(found.iter().zip(expected)) {
        assert!(norm(b) > 0.0, "{name} has no gradient");
        let off = norm(&(a - b)) / norm(b);
        assert!(off <= 2e-5, "{name}: {off}");
    }
}

/// `L_cls + λ L_seg` of volumes, each through the network by itself, and libtorch's own backward.
fn plainly(items: &[Item]) -> (Losses, Vec<Tensor>) {
    let network = with_decoder();
    let (mut labels, mut masks) = (Vec::new(), Vec::new());
    let mut known = 0;
    for item in items {
        let count = only(item).count;
        let slices = only(item).tensor(0, count, Device::Cpu).unwrap();
        let encoded = network.encode(0, &slices, true).unwrap();
        let logits = network.pool(&[Some(encoded.cls)]).unwrap().logits;
        labels.push(Loss::default().smoothed_sum(&logits, &item.targets, 0.1).unwrap());
        known += item.targets.iter().flatten().count();
        if let Some(mask) = &only(item).mask {
            let voxels = network.parameters.decode(&encoded.patch.unwrap(), [2, 3]).unwrap();
            masks.push(pixel(&voxels, &Tensor::from_slice(mask).view([count as i64, 28, 42])).unwrap());
        }
    }
    let segmentation = Tensor::stack(&masks, 0).mean(None);
    let total = Tensor::stack(&labels, 0).sum(None) / known as f64 + &segmentation * WEIGHT;
    let leaves: Vec<&Tensor> = network.parameters.named.iter().map(|(_, tensor)| tensor).collect();
    let gradients = Tensor::run_backward(&[&total], &leaves, false, false);
    let losses = Losses { total: total.double_value(&[]), pixel: Some(segmentation.double_value(&[])) };
    (losses, gradients.iter().map(|g| g.flatten(0, -1)).collect())
}

fn same_losses(a: Losses, b: Losses) {
    assert!((a.total - b.total).abs() < 1e-6, "{a:?} {b:?}");
    assert!((a.pixel.unwrap() - b.pixel.unwrap()).abs() < 1e-6, "{a:?} {b:?}");
}

#[test]
fn masks_give_the_same_gradients_together_apart_and_in_chunks() {
    let items = [
        masked(item(5, Some(true))),
        item(3, Some(false)),
        masked(item(7, Some(true))),
        masked(item(4, None)),
    ];
    let (losses, expected) = plainly(&items);
    // All together, some apart, two in chunks, all in chunks; on several workers.
    for (chunk, threads) in [(19, 1), (8, 1), (4, 1), (2, 1), (3, 3)] {
        let (found_losses, found) = supervised(&items, chunk, threads);
        same_losses(found_losses, losses);
        all_close(&found, &expected);
    }
}

#[test]
fn a_volume_without_a_mask_adds_nothing_to_the_loss_of_the_masks() {
    let (with, without) = (masked(item(4, Some(true))), item(3, Some(false)));
    let (alone, gradients) = supervised(std::slice::from_ref(&with), 9, 1);
    let (both, of_both) = supervised(&[with.clone(), without.clone()], 9, 1);
    let pixel = alone.pixel.unwrap();
    assert!((both.pixel.unwrap() - pixel).abs() < 1e-6);
    // The labels' mean is over both volumes.
    let (labels, _) = found(&[with.clone(), without.clone()], 9, 1).unwrap();
    assert!((both.total - labels - WEIGHT * pixel).abs() < 1e-6);
    let parameters = with_decoder().parameters;
    for ((name, _), (a, b)) in parameters.named.iter().zip(of_both.iter().zip(&gradients)) {
        if name.starts_with("decoder.") {
            assert!(norm(&(a - b)) <= 1e-5 * norm(b), "{name}");
        }
    }
    // None has a mask: the decoder learns nothing.
    let (neither, of_neither) = supervised(std::slice::from_ref(&without), 9, 1);
    assert_eq!(neither.pixel, None);
    for ((name, _), gradient) in parameters.named.iter().zip(&of_neither) {
        assert_eq!(norm(gradient) > 0.0, !name.starts_with("decoder."), "{name}");
    }
    // No label is known: the masks alone, which leave query and head alone.
    let (masks, of_masks) = supervised(&[masked(item(4, None))], 9, 1);
    assert!((masks.total - WEIGHT * pixel).abs() < 1e-6);
    for ((name, _), gradient) in parameters.named.iter().zip(&of_masks) {
        assert_eq!(norm(gradient) > 0.0, name != "query" && !name.starts_with("head."), "{name}");
    }
}

#[test]
fn masks_are_not_looked_at_without_pixel_supervision() {
    assert!(found(&[masked(item(5, None))], 4, 1).is_none());
    let (loss, expected) = found(&[item(5, Some(true)), item(2, Some(false))], 4, 1).unwrap();
    let (masked_loss, found) = found(&[masked(item(5, Some(true))), item(2, Some(false))], 4, 1).unwrap();
    assert!(loss.to_bits() == masked_loss.to_bits() && found == expected);
}

#[test]
fn mean_and_median_give_the_gradients_of_their_definitions() {
    // An odd number of slices and an even one.
    let items = [item(7, Some(true)), item(4, Some(false))];
    for pooling in [Pooling::Mean, Pooling::Median] {
        let tiny = || {
            let Network { encoder, parameters } = tiny_network(5);
            let parameters = parameters.pooled_by(pooling, encoder.arch(), 5, Device::Cpu).unwrap();
            Network { encoder, parameters }
        };
        let network = tiny();
        let get = |name: &str| network.parameters.get(name).unwrap();
        let losses = items.each_ref().map(|item| {
            let slices = only(item).tensor(0, only(item).count, Device::Cpu).unwrap();
            let rows = network.encode(0, &slices, false).unwrap().cls;
            let pooled = match pooling {
                Pooling::Median => rows.quantile_scalar(0.5, 0, false, "linear"),
                _ => rows.sum_dim_intlist(0i64, false, None) / rows.size()[0] as f64,
            };
            let logits = get("head.weight").mv(&pooled) + get("head.bias");
            Loss::default().smoothed_sum(&logits, &item.targets, 0.1).unwrap()
        });
        let total = (&losses[0] + &losses[1]) / 2.0;
        let leaves: Vec<&Tensor> = network.parameters.named.iter().map(|(_, tensor)| tensor).collect();
        let expected = Tensor::run_backward(&[&total], &leaves, false, false);
        let lengths: Vec<i64> = leaves.iter().map(|leaf| leaf.numel() as i64).collect();
        // Together, one of them in chunks, both in chunks; on several workers.
        for (chunk, threads) in [(11, 1), (5, 1), (3, 1), (1, 1), (2, 2)] {
            let network = tiny();
            let workers = Workers::new(&network, threads, 8).unwrap();
            let found = gradients(&workers, &network.parameters, items.to_vec(), plan(chunk)).unwrap();
            let (losses, found) = found.unwrap();
            assert!((losses.total - total.double_value(&[])).abs() < 1e-6, "{pooling:?} {chunk}");
            let found = found.split_with_sizes(&lengths, 0);
            for (((name, _), found), expected) in network.parameters.named.iter().zip(&found).zip(&expected) {
                assert!(norm(expected) > 0.0 && name != "query", "{pooling:?}: {name} has no gradient");
                let off = norm(&(found - expected.flatten(0, -1))) / norm(expected);
                assert!(off <= 1e-5, "{pooling:?} {chunk} {name}: {off}");
            }
        }
    }
}

/// A network of two views: of 28 by 42 and of 42 by 28 pixels.
fn of_two_views() -> Network {
    crate::fit::tests::tiny_network_of_views(&["a", "b"], 5)
}

fn of_views(a: Option<usize>, b: Option<usize>, target: bool) -> Item {
    let turned = |count| Arc::new(Slices { size: [42, 28], ..slices(count, 100 + count as u64) });
    let views = vec![a.map(|count| slices(count, count as u64).into()), b.map(turned)];
    Item { study: Study { views }.into(), targets: vec![Some(target)] }
}

/// Each view by its own factors and query, the views by the task's query: written out, with libtorch's own backward.
fn fused(items: &[Item]) -> (f64, Tensor) {
    let network = of_two_views();
    let get = |name: &str| network.parameters.get(name).unwrap();
    let attend = |rows: &Tensor, query: &Tensor| {
        let weights = (rows.matmul(query) / (rows.size()[1] as f64).sqrt()).softmax(0, None);
        (rows * weights.unsqueeze(1)).sum_dim_intlist(0i64, false, None)
    };
    let losses: Vec<Tensor> = items
        .iter()
        .map(|item| {
            let there = item.study.views.iter().enumerate().filter_map(|(v, s)| Some((v, s.as_ref()?)));
            let pooled: Vec<Tensor> = there
                .map(|(view, slices)| {
                    let slices = slices.tensor(0, slices.count, Device::Cpu).unwrap();
                    let factors = network.parameters.factors(view).unwrap();
                    let rows = network.encoder.encode(&slices, Some(&factors), false).unwrap().cls;
                    attend(&rows, &get(&format!("views.{}.query", ["a", "b"][view])))
                })
                .collect();
            let fused = attend(&Tensor::stack(&pooled, 0), &get("query"));
            let logits = get("head.weight").mv(&fused) + get("head.bias");
            Loss::default().smoothed_sum(&logits, &item.targets, 0.1).unwrap()
        })
        .collect();
    let total = Tensor::stack(&losses, 0).mean(None);
    let leaves: Vec<&Tensor> = network.parameters.named.iter().map(|(_, tensor)| tensor).collect();
    // A view that no item has leaves its parameters out.
    let gradients = Tensor::f_run_backward(&[&total], &leaves, false, false).unwrap();
    let flat: Vec<Tensor> = gradients
        .iter()
        .zip(&leaves)
        .map(
            |(g, leaf)| {
                if g.defined() { g.flatten(0, -1) } else { leaf.detach().zeros_like().flatten(0, -1) }
            },
        )
        .collect();
    (total.double_value(&[]), Tensor::cat(&flat, 0))
}

#[test]
fn views_have_the_gradients_of_the_definition_in_one_pass_and_in_chunks() {
    let items =
        [of_views(Some(3), Some(4), true), of_views(None, Some(2), false), of_views(Some(5), None, true)];
    for items in [&items[..], &items[..1], &items[1..2]] {
        let (expected_loss, expected) = fused(items);
        let network = of_two_views();
        for (chunk, threads) in [(64, 1), (64, 3), (2, 1), (1, 2)] {
            let workers = Workers::new(&network, threads, 8).unwrap();
            let made = gradients(&workers, &network.parameters, items.to_vec(), plan(chunk)).unwrap();
            let (losses, found) = made.unwrap();
            assert!((losses.total - expected_loss).abs() < 1e-6, "chunk {chunk}");
            let off = norm(&(&found - &expected)) / norm(&expected);
            assert!(off <= 1e-6, "chunk {chunk}: {off}");
        }
        // Its factors are touched only where a view is there.
        let names = network.parameters.named.iter();
        let lengths: Vec<i64> = names.clone().map(|(_, t)| t.numel() as i64).collect();
        for ((name, _), gradient) in names.zip(expected.split_with_sizes(&lengths, 0)) {
            let view = usize::from(name.starts_with("views.b."));
            let there = !name.starts_with("views.") || items.iter().any(|i| i.study.views[view].is_some());
            // One view alone has all the weight, whatever the task's query.
            let pools = items.iter().any(|i| i.study.views.iter().flatten().count() > 1);
            assert_eq!(norm(&gradient) > 0.0, there && (name != "query" || pools), "{name}");
        }
    }
}
