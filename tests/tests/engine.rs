//! The engine against the whole graph, on a tiny backbone.

use std::path::Path;

use runtime::backbone::Backbone;
use runtime::engine::{EncodedView, Engine, EngineError, Output, run_graph};
use runtime::graph::{GraphError, GraphMeta, full_task_graph, task_graph};
use runtime::tensor::{Tensor, Tensors};
use tests::fixture::task_of_size;
use tests::reference::{difference, tensors};

const CASE: &str = "fixtures/reference/backbones/dinov2reg4_timm_42x56";
const SIZE: [usize; 2] = [42, 56];
const SLICE: usize = 3 * SIZE[0] * SIZE[1];

/// A task graph with a query and a two-label head of fixed values, no adaptation.
fn graph() -> Vec<u8> {
    graph_by(task_graph)
}

fn graph_by(
    write: impl Fn(Backbone, &Tensors, [usize; 2], &GraphMeta) -> Result<Vec<u8>, GraphError>,
) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(CASE);
    let backbone = Backbone::open(&folder.join("weights.safetensors")).unwrap();
    let d = backbone.arch.dim;
    let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
    let content = Tensors::from([
        ("query".into(), Tensor::new([d], wave(d, 1.3))),
        ("head.weight".into(), Tensor::new([2, d], wave(2 * d, 0.7))),
        ("head.bias".into(), Tensor::new([2], vec![0.25, -0.5])),
    ]);
    let meta = GraphMeta { task: "tiny".into(), version: "1.0.0".into(), content_sha256: "0".repeat(64) };
    write(backbone, &content, SIZE, &meta).unwrap()
}

/// Seven different slices, `[7, 3, H, W]`.
fn slices() -> Tensor {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(CASE);
    let input = tensors(&folder.join("case.safetensors"))["input"].clone();
    let data = (0..7).flat_map(|s| {
        let (from, gain) = (&input.data[(s % 2) * SLICE..][..SLICE], 1.0 - 0.1 * s as f32);
        from.iter().map(move |x| x * gain).collect::<Vec<_>>()
    });
    Tensor::new([7, 3, SIZE[0], SIZE[1]], data.collect())
}

fn run(engine: &Engine, slices: &Tensor, order: &[usize]) -> Output {
    engine.run(order.len(), &|s, out| out.copy_from_slice(&slices.data[order[s] * SLICE..][..SLICE])).unwrap()
}

const STORED: [usize; 7] = [0, 1, 2, 3, 4, 5, 6];

/// What the cut halves say is what the whole graph says.
fn assert_near(whole: &Tensors, found: &Output, most: f32) {
    for (name, values) in [
        ("logits", &found.logits),
        ("slice_weights", &found.views[0].slice_weights),
        ("heatmap", &found.views[0].heatmap),
        ("slice_embeddings", &found.views[0].embeddings),
    ] {
        let difference = difference(&whole[name], &Tensor::new([values.len()], values.clone()));
        assert!(difference <= most, "{name} differs by {difference:e}");
    }
}

#[test]
fn cut_halves_equal_the_whole_graph() {
    let (graph, slices) = (graph(), slices());
    let whole = run_graph(graph.clone(), &slices).unwrap();
    let engine = Engine::load(&graph, 2).unwrap();
    assert_eq!(
        (engine.views()[0].size, engine.views()[0].grid, engine.dim(), engine.classes()),
        (SIZE, [3, 4], 48, 2)
    );
    let found = run(&engine, &slices, &STORED);
    assert_near(&whole, &found, 1e-5);
    assert!((found.views[0].slice_weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    assert!(
        found.views[0].slice_weights.iter().any(|w| (w - 1.0 / 7.0).abs() > 1e-3),
        "the query prefers some slices"
    );
}

/// What the bench gives to its peers.
#[test]
fn the_graph_of_all_tokens_says_the_same() {
    let whole = run_graph(graph_by(full_task_graph), &slices()).unwrap();
    let engine = Engine::load(&graph(), 2).unwrap();
    assert_near(&whole, &run(&engine, &slices(), &STORED), 1e-4);
}

/// Of every family: a tiny one, a slice at a time.
#[test]
fn each_familys_graph_is_cut_without_loss() {
    for case in ["dinov3_fb_96x64", "vit_hf_96x80", "siglip_hf_98x84", "davit_timm_48x48", "davit_hf_60x44"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference/backbones").join(case);
        let backbone = Backbone::open(&folder.join("weights.safetensors")).unwrap();
        let input = tensors(&folder.join("case.safetensors")).remove("input").unwrap();
        let size = [input.shape[2], input.shape[3]];
        let (dim, grid) = (backbone.arch.dim, backbone.arch.grid(size).unwrap());
        let (_, graph) = task_of_size(backbone, size);
        let whole = run_graph(graph.clone(), &input).unwrap();
        let engine = Engine::load(&graph, 2).unwrap();
        assert_eq!(
            (engine.views()[0].size, engine.views()[0].grid, engine.dim(), engine.classes()),
            (size, grid, dim, 2)
        );
        let each = input.data.len() / 2;
        let found = engine.run(2, &|s, out| out.copy_from_slice(&input.data[s * each..][..each])).unwrap();
        println!("{case}");
        assert_near(&whole, &found, 2e-5);
        assert!(found.views[0].heatmap.iter().any(|x| *x > 1e-3), "{case}");
    }
}

#[test]
fn neither_threads_nor_streaming_change_a_bit() {
    let (engine, slices) = (Engine::load(&graph(), 1).unwrap(), slices());
    let alone = run(&engine, &slices, &STORED);
    let threaded = Engine::load(&graph(), 3).unwrap();
    assert_eq!(run(&threaded, &slices, &STORED), alone);
    // One slice: the threads are inside its operators.
    assert_eq!(run(&threaded, &slices, &[4]).views[0].embeddings, alone.views[0].embeddings[4 * 48..5 * 48]);

    // Slices that come in another order, one at a time, put at their places.
    let (mut embeddings, mut attention) = (vec![0.0; 7 * 48], vec![0.0; 7 * 12]);
    let mut encoder = engine.encoder(0, 1).unwrap();
    for s in [3, 6, 0, 5, 1, 4, 2] {
        let encoded = encoder.encode(|out| out.copy_from_slice(&slices.data[s * SLICE..][..SLICE])).unwrap();
        embeddings[s * 48..][..48].copy_from_slice(&encoded.embedding);
        attention[s * 12..][..12].copy_from_slice(&encoded.attention);
    }
    assert_eq!(engine.pool(vec![Some(EncodedView { embeddings, attention })]).unwrap(), alone);
}

#[test]
fn slice_order_does_not_change_the_result() {
    let (engine, slices) = (Engine::load(&graph(), 2).unwrap(), slices());
    let stored = run(&engine, &slices, &STORED);
    let order = [4, 2, 6, 0, 3, 1, 5];
    let shuffled = run(&engine, &slices, &order);
    for (a, b) in stored.logits.iter().zip(&shuffled.logits) {
        assert!((a - b).abs() <= 1e-5, "{a} and {b}");
    }
    for (at, s) in order.into_iter().enumerate() {
        assert!((shuffled.views[0].slice_weights[at] - stored.views[0].slice_weights[s]).abs() <= 1e-6);
    }
}

#[test]
fn unusable_graphs_and_empty_volumes_are_refused() {
    let engine = Engine::load(&graph(), 1).unwrap();
    assert!(matches!(engine.run(0, &|_, _| ()), Err(EngineError::Empty)));
    let mut cut = graph();
    cut.truncate(cut.len() / 2);
    for bytes in [cut, b"not a graph".to_vec(), vec![]] {
        let error = Engine::load(&bytes, 1).err().expect("refused");
        assert!(error.is_bad_input(), "{error}");
    }
}
