mod fitting;
mod parity;
mod pretrained;
mod unetr;

use std::path::PathBuf;

use firmware_config::Normalize;
use tch::Kind;

use super::slice_cnn::neighbours;
use super::*;
use crate::data::Slices;
use crate::fit::tests::backbone_path;
use crate::model::Encoder;
use crate::random::{Purpose, generator, unit};
use crate::run::open_backbone;

const TASK: &str = "name = 't'\nversion = '1.0.0'\nlabels = ['bright']\nblocks = 2\nloss = { kind = 'bce' }\n\
     [recipe]\nplane = 'axial'\nsize = [28, 28]\nintensity = { kind = 'window', windows = [[0, 800]] }\n\
     [train]\nepochs = 4\nbatch = 4\nseed = 3\nchunk = 4\naugment = { flip_columns = true }\n";

const THREE_WINDOWS: &str = "windows = [[0, 800], [0, 80], [100, 400]]";

fn task(text: &str) -> Task {
    toml::from_str(text).unwrap()
}

/// Small backbones of several families, with random weights.
fn reference() -> PathBuf {
    backbone_path().ancestors().nth(2).unwrap().into()
}

fn backbone() -> Backbone {
    open_backbone(&backbone_path(), Some(2)).unwrap()
}

fn maker() -> Maker {
    Maker::new(5, Device::Cpu)
}

/// A small one of each architecture, for one label.
fn small(method: Method) -> Box<dyn Rival> {
    let dense = densenet::Sizes { first: 8, growth: 4, blocks: &[1, 2, 1, 1] };
    let resnet = |bottleneck| resnet::Sizes { first: 4, depths: [1, 2, 1, 1], bottleneck };
    let stage = |fused, expansion, channels, depth| efficientnet::Stage {
        fused,
        expansion,
        stride: 2,
        channels,
        depth,
    };
    let stages = &[stage(true, 1, 8, 2), stage(true, 4, 16, 1), stage(false, 4, 24, 2)];
    let cnn = efficientnet::Sizes { first: 8, stages, features: 32 };
    match method {
        Method::DenseNet121 => Box::new(DenseNet::new(maker(), &dense, 1, true).unwrap()),
        Method::ResNet18 => Box::new(ResNet::new(maker(), &resnet(false), 1, true).unwrap()),
        Method::ResNet50 => Box::new(ResNet::new(maker(), &resnet(true), 1, true).unwrap()),
        Method::SliceCnn => Box::new(SliceCnn::new(maker(), &cnn, 1, true).unwrap()),
        Method::Mst => Box::new(Mst::new(maker(), &backbone(), [28, 28], 1, 4).unwrap()),
        Method::Voco => Box::new(Voco::new(maker(), 12, 1, true, &Normalize::None).unwrap()),
    }
}

const NETWORKS: [Method; 6] =
    [Method::DenseNet121, Method::ResNet18, Method::ResNet50, Method::SliceCnn, Method::Mst, Method::Voco];

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = generator(seed, Purpose::Init, 9, 9);
    (0..count).map(|_| 2.0 * unit(&mut rng) - 1.0).collect()
}

fn slices(count: usize, seed: u64) -> Slices {
    Slices { count, size: [28, 28], values: values(count * 3 * 28 * 28, seed), mask: None }
}

fn volumes(count: usize, slices: usize) -> Tensor {
    let values = values(count * slices * 3 * 28 * 28, 1);
    Tensor::from_slice(&values).view([count as i64, slices as i64, 3, 28, 28])
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// Weights of a 3D DenseNet-121 with one channel and one label.
fn densenet121() -> usize {
    let (mut sum, mut channels) = (64 * 343 + 2 * 64, 64);
    for (b, depth) in [6, 12, 24, 16].into_iter().enumerate() {
        for _ in 0..depth {
            sum += 2 * channels + 128 * channels + 2 * 128 + 32 * 128 * 27;
            channels += 32;
        }
        if b < 3 {
            sum += 2 * channels + channels * channels / 2;
            channels /= 2;
        }
    }
    assert_eq!(channels, 1024);
    sum + 2 * channels + channels + 1
}

/// Weights of a 3D ResNet with one channel and one label.
fn resnet(depths: [usize; 4], bottleneck: bool) -> usize {
    let (mut sum, mut channels) = (64 * 343 + 2 * 64, 64);
    for (stage, depth) in depths.into_iter().enumerate() {
        let width = 64 << stage;
        let output = if bottleneck { 4 * width } else { width };
        for n in 0..depth {
            sum += if bottleneck {
                channels * width + 27 * width * width + width * output + 4 * width + 2 * output
            } else {
                27 * channels * width + 27 * width * width + 4 * width
            };
            if n == 0 && channels != output {
                sum += channels * output + 2 * output;
            }
            channels = output;
        }
    }
    sum + channels + 1
}

#[test]
fn networks_have_the_published_sizes_and_give_a_logit_a_label() {
    let one = task(TASK);
    let mut two = task(&TASK.replace("windows = [[0, 800]]", THREE_WINDOWS));
    two.labels.push("dark".into());
    for (method, expected) in [
        (Method::DenseNet121, [densenet121(), 11_243_649]),
        (Method::ResNet18, [resnet([2; 4], false), 33_160_513]),
        (Method::ResNet50, [resnet([3, 4, 6, 3], true), 46_157_121]),
        (Method::SliceCnn, [20_177_488 + 4_726_784 + 131_328 + 257, 25_035_857]),
    ] {
        let built = build(method, &one, None, None, Device::Cpu).unwrap();
        assert_eq!([built.weights().count(); 2], expected, "{}", method.name());
        let found = |volumes: &Tensor, rival: &dyn Rival| {
            tch::no_grad(|| rival.forward(volumes, false).unwrap().size())
        };
        assert_eq!(found(&volumes(1, 3), built.as_ref()), [1, 1], "{}", method.name());
        drop(built);
        // Two more channels in a 7³ stem, and another row in the head.
        let built = build(method, &two, None, None, Device::Cpu).unwrap();
        let stem = if method == Method::SliceCnn { 0 } else { 2 * 64 * 343 };
        let row = built.weights().named().last().unwrap().1.numel() / 2;
        let head = built.weights().named().iter().rev().nth(1).unwrap().1.numel() / 2;
        assert_eq!(built.weights().count(), expected[1] + stem + head + row, "{}", method.name());
        assert_eq!(found(&volumes(2, 1), built.as_ref()), [2, 2], "{}", method.name());
    }
    let features = build(Method::SliceCnn, &one, None, None, Device::Cpu).unwrap();
    let features = features.weights().named().iter().filter(|(name, _)| name.starts_with("features."));
    assert_eq!(features.map(|(_, tensor)| tensor.numel()).sum::<usize>(), 20_177_488);
}

#[test]
fn an_mst_is_the_backbone_and_one_layer() {
    let (task, backbone) = (task(TASK), backbone());
    let built = build(Method::Mst, &task, Some(&backbone), None, Device::Cpu).unwrap();
    let d = backbone.arch.dim;
    // CLS, attention, two layers, three norms and the head.
    let layer = d + 4 * (d * d + d) + 2 * (d * d + d) + 6 * d + d + 1;
    let named = built.weights().named().iter();
    let thawed: usize =
        named.filter(|(name, _)| name.starts_with("backbone.")).map(|(_, tensor)| tensor.numel()).sum();
    assert_eq!(built.weights().count(), thawed + layer);
    // All of the backbone but its table of positions, of which there are those of 2x2 patches, and CLS' own, which is added to CLS.
    let count = |name: &str| backbone.tensors.get(name).map_or(0, |tensor| tensor.data.len());
    let all: usize = backbone.tensors.values().map(|tensor| tensor.data.len()).sum();
    assert_eq!(thawed, all - count("position.patch") - count("position.cls") + 4 * d);
    assert!(built.weights().named().iter().all(|(_, tensor)| tensor.requires_grad()));

    // The slices' order does not matter, since they have no positions.
    let volume = volumes(1, 5);
    let forward = |volume: &Tensor| tch::no_grad(|| built.forward(volume, false).unwrap());
    assert!(off(&forward(&volume), &forward(&volume.flip([1]))) < 1e-5);
    assert!(off(&forward(&volume), &forward(&volume.narrow(1, 0, 3))) > 1e-4);
}

#[test]
fn thawed_weights_give_what_the_frozen_ones_do_and_move_without_them() {
    for name in ["dinov2_hf_98x84", "dinov2reg4_timm_42x56", "dinov3_hf_gated_96x64", "vit_hf_96x80"] {
        let backbone = open_backbone(&reference().join(name).join("weights.safetensors"), None).unwrap();
        let size = [2 * backbone.arch.patch; 2];
        let new = || Encoder::new(&backbone, size, Device::Cpu).unwrap();
        let (frozen, (thawed, named)) = (new(), new().trainable().unwrap());
        let side = size[0] as i64;
        let slices = Tensor::from_slice(&values(3 * 3 * size[0] * size[0], 1)).view([3, 3, side, side]);
        let cls = |encoder: &Encoder| encoder.encode(&slices, None, false).unwrap().cls;
        assert_eq!(cls(&frozen), cls(&thawed).detach());
        assert!(!cls(&frozen).requires_grad());
        let inputs: Vec<&Tensor> = named.iter().map(|(_, tensor)| tensor).collect();
        let total = cls(&thawed).square().sum(Kind::Float);
        let found = Tensor::run_backward(&[total], &inputs, false, false);
        for ((weight, _), gradient) in named.iter().zip(&found) {
            let reached = gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0;
            assert!(reached, "{name}: {weight}");
        }
        let share = thawed.share();
        tch::no_grad(|| named.iter().for_each(|(_, tensor)| drop(tensor.shallow_clone().fill_(0.01))));
        assert_eq!(cls(&thawed).detach(), cls(&share).detach());
        assert_ne!(cls(&frozen), cls(&thawed).detach());
    }
}

#[test]
fn an_msts_chunks_give_the_gradients_of_the_whole() {
    let whole = Mst::new(maker(), &backbone(), [28, 28], 1, 64).unwrap();
    let parts = Mst::new(maker(), &backbone(), [28, 28], 1, 3).unwrap();
    let volumes = volumes(2, 5);
    let loss = |logits: &Tensor| logits.f_square()?.f_sum(Kind::Float);
    let (value, expected) = whole.gradients(&volumes, &loss).unwrap();
    let (same, found) = parts.gradients(&volumes, &loss).unwrap();
    assert!(off(&value, &same) < 1e-5);
    let largest = expected.abs().max().double_value(&[]);
    assert!(off(&expected, &found) < 1e-5 * largest.max(1.0), "{}", off(&expected, &found));
    assert_eq!(found.size(), [whole.weights().count() as i64]);
}

#[test]
fn an_lstm_starts_as_pytorchs_and_looks_both_ways() {
    let mut make = maker();
    let lstm = lstm::Lstm::new(&mut make, "lstm", [6, 16, 2]).unwrap();
    let weights = make.finish();
    assert_eq!(weights.named().len(), 16);
    assert_eq!(weights.named()[12].0, "lstm.weight_ih_l1_reverse");
    for (name, tensor) in weights.named() {
        let (least, most) = (tensor.min().double_value(&[]), tensor.max().double_value(&[]));
        assert!(least >= -0.25 && most <= 0.25 && most - least > 0.4, "{name}: {least} to {most}");
    }
    let sequence = Tensor::from_slice(&values(30, 2)).view([1, 5, 6]);
    let run = |sequence: &Tensor| lstm.apply(sequence).unwrap().detach();
    let states = run(&sequence);
    assert_eq!(states.size(), [1, 5, 32]);
    // What comes last is seen first by the other direction.
    let changed = sequence.copy();
    let _ = changed.narrow(1, 4, 1).fill_(1.0);
    assert!(off(&run(&changed).narrow(1, 0, 1), &states.narrow(1, 0, 1)) > 1e-3);

    // One step of one layer by hand: gates of input, forgetting, cell and output.
    let mut make = maker();
    let lstm = lstm::Lstm::new(&mut make, "lstm", [6, 4, 1]).unwrap();
    let weights = make.finish();
    let of = |n: usize| weights.named()[n].1.detach();
    let input = sequence.get(0).narrow(0, 0, 1);
    let gates = (input.matmul(&of(0).tr()) + of(2) + of(3)).chunk(4, 1);
    let cell = gates[0].sigmoid() * gates[2].tanh();
    let expected = gates[3].sigmoid() * cell.tanh();
    let found = lstm.apply(&input.unsqueeze(0)).unwrap().detach();
    assert!(off(&found.get(0).narrow(1, 0, 4), &expected) < 1e-6);
}

#[test]
fn a_slice_sees_its_neighbours_where_the_channels_are_grey() {
    let volume = (Tensor::arange(4, (Kind::Float, Device::Cpu)) * 10.0).view([1, 4, 1, 1, 1])
        + Tensor::arange(3, (Kind::Float, Device::Cpu)).view([1, 1, 3, 1, 1]);
    let found = Vec::<f32>::try_from(neighbours(&volume).unwrap().flatten(0, -1)).unwrap();
    assert_eq!(found, [0.0, 1.0, 12.0, 0.0, 11.0, 22.0, 10.0, 21.0, 32.0, 20.0, 31.0, 32.0]);
    let one = volume.narrow(1, 0, 1);
    assert_eq!(neighbours(&one).unwrap(), one);

    let grey = |intensity: &str| {
        is_grey(&task(&TASK.replace("kind = 'window', windows = [[0, 800]]", intensity)).recipe)
    };
    assert!(grey("kind = 'window', windows = [[0, 800]]") && grey("kind = 'z-score'"));
    assert!(grey("kind = 'percentile', low = 1, high = 99"));
    assert!(!grey(&format!("kind = 'window', {THREE_WINDOWS}")));
    assert!(!grey("kind = 'window', windows = [[0, 800], [0, 80]]"));
}

#[test]
fn a_thin_volume_is_resampled_and_that_is_told() {
    assert_eq!(enlarged([5, 224, 224]), Some([32, 224, 224]));
    assert_eq!(enlarged([40, 28, 31]), Some([40, 32, 32]));
    assert_eq!(enlarged([32, 32, 32]), None);
    assert_eq!(rounded_up([40, 224, 250]), Some([64, 224, 256]));
    assert_eq!(rounded_up([32, 224, 64]), None);
    for method in NETWORKS {
        let thin = !matches!(method, Method::SliceCnn | Method::Mst);
        let expected = thin.then_some([32, 224, 224]);
        assert_eq!(small(method).resampled([5, 224, 224]), expected, "{}", method.name());
    }
    let ramp =
        Tensor::arange(4, (Kind::Float, Device::Cpu)).view([1, 4, 1, 1, 1]).expand([1, 4, 3, 33, 40], false);
    let grey = image::image(&ramp, true, enlarged).unwrap();
    assert_eq!(grey.size(), [1, 1, 32, 33, 40]);
    let along = Vec::<f32>::try_from(grey.select(4, 7).select(3, 7).flatten(0, -1)).unwrap();
    assert!(
        along.is_sorted()
            && along[0].abs() < 1e-6
            && (along[31] - 3.0).abs() < 1e-6
            && (along[16] - 1.5625).abs() < 1e-6
    );
    assert_eq!(image::image(&ramp, false, enlarged).unwrap().size(), [1, 3, 32, 33, 40]);
}

#[test]
fn one_value_a_channel_does_not_spoil_a_batch_norm() {
    // A single volume of 32³ voxels is one voxel in the last stage.
    for method in [Method::DenseNet121, Method::ResNet18, Method::Voco] {
        let rival = small(method);
        let volume = volumes(1, 3);
        let (_, gradients) = rival.gradients(&volume, &|logits| logits.f_sum(Kind::Float)).unwrap();
        let finite = |t: &Tensor| t.isfinite().all().int64_value(&[]) == 1;
        assert!(finite(&gradients) && rival.weights().copy().unwrap().iter().all(finite));
        assert!(finite(&rival.forward(&volume, false).unwrap()), "{}", method.name());
    }
}

#[test]
fn what_cannot_be_compared_is_told_in_a_sentence() {
    let plain = task(TASK);
    let told = |method: Method, task: &Task, backbone: Option<&Backbone>| {
        let error = build(method, task, backbone, None, Device::Cpu).err().unwrap();
        assert!(error.is_bad_input());
        error.to_string()
    };
    let text = told(Method::Mst, &plain, None);
    assert!(text.starts_with("the method `mst` cannot be compared: ") && text.contains("backbone"), "{text}");
    for (name, family) in [("davit_hf_60x44", "DaViT"), ("siglip_hf_98x84", "SigLIP")] {
        let other = open_backbone(&reference().join(name).join("weights.safetensors"), None).unwrap();
        let text = told(Method::Mst, &plain, Some(&other));
        assert!(text.contains(family) && text.contains("such as a DINOv2"), "{text}");
        assert!(Encoder::new(&other, [56, 56], Device::Cpu).unwrap().trainable().is_err(), "{name}");
    }
    let views = task(&TASK.replace("[train]", "[views.a]\n[views.b]\n[train]"));
    let text = told(Method::ResNet18, &views, None);
    assert!(text.contains("the views a, b"), "{text}");
    let names = Method::ALL.map(Method::name);
    assert!(names.iter().enumerate().all(|(i, name)| !names[..i].contains(name)));
}
