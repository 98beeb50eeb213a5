//! What a slice after the first asks of the heap, on the real backbone: lists of a few kilobytes, nothing that stays.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

use runtime::engine::{Engine, onnx};
use tests::fixture::{packaged_backbone, task_of_size};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

#[test]
fn slices_are_encoded_in_memory_that_is_there() {
    let (_, graph) = task_of_size(packaged_backbone(), [224, 224]);
    let engine = Engine::of(onnx::decode(&graph).unwrap(), 1).unwrap();
    let mut encoder = engine.encoder(0, 1).unwrap();
    let mut encode = || encoder.encode(|slice| slice.fill(0.5)).unwrap();
    let first = encode();

    let profiler = dhat::Profiler::builder().testing().build();
    let asked = || {
        let before = dhat::HeapStats::get();
        assert!(encode() == first);
        let after = dhat::HeapStats::get();
        assert_eq!(after.curr_bytes, before.curr_bytes, "a slice leaves something behind");
        (after.total_blocks - before.total_blocks, after.total_bytes - before.total_bytes)
    };
    let slices: Vec<_> = std::iter::repeat_with(asked).take(3).collect();
    drop(profiler);
    println!("blocks and bytes that each of three slices asks for: {slices:?}");
    // The slice itself is 602 kB, what it is encoded in several MB.
    assert!(slices.iter().all(|(blocks, bytes)| *blocks < 200 && *bytes < 100_000), "{slices:?}");
}
