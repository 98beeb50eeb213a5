//! What sixteen tasks on the real backbone hold.
//!
//! The test starts itself for each figure, since what a process has freed it may still hold.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

use std::path::Path;
use std::process::Command;

use firmware_config::device::Weights;
use runtime::gate::{Machine, ThisMachine};
use runtime::infer::{LoadedTask, Loader};
use runtime::plugin::{Plugin, build_graph, content_sha256, expected_content};
use runtime::tensor::{Tensor, sha256};
use tests::fixture::{packaged_backbone, packaged_backbone_file, random_task};

/// In the environment of a process that is to load: the plugin, `merged` or `shared`, and how many tasks.
const LOAD: &str = "SCANSIDE_TEST_LOAD";

#[test]
fn sixteen_tasks_that_share_a_backbone_take_a_quarter_more_than_one() {
    if let Ok(load) = std::env::var(LOAD) {
        return load_and_tell(&packaged_backbone_file(), &load);
    }
    let backbone = packaged_backbone();
    let folder = tempfile::tempdir().unwrap();
    let mut plugin = random_task(&backbone);
    let manifest = &mut plugin.manifest;
    manifest.lora.rank = 8;
    manifest.recipe.size = [224, 224];
    let content = expected_content(&backbone.arch, &manifest.lora, 2, &[]).into_iter();
    let constant = |shape: Vec<usize>| Tensor::new(shape.clone(), vec![0.01; shape.iter().product()]);
    plugin.content = content.map(|(name, shape)| (name, constant(shape))).collect();
    manifest.content_sha256 = content_sha256(&plugin.content, manifest);
    manifest.parameters = plugin.content.values().map(|tensor| tensor.data.len()).sum();
    manifest.graph_sha256 = sha256(&build_graph(backbone, manifest, &plugin.content).unwrap());
    let file = folder.path().join("task.plugin");
    plugin.write(&file).unwrap();

    let bytes = |mode: &str, tasks: usize| -> u64 {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--nocapture", "--test-threads", "1"]);
        let said = again.env(LOAD, format!("{} {mode} {tasks}", file.display())).output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix("bytes ")?.parse().ok());
        found.unwrap_or_else(|| panic!("{mode} {tasks}: {text}"))
    };
    let (merged, shared, all) = (bytes("merged", 1), bytes("shared", 1), bytes("shared", 16));
    let mb = |bytes: u64| bytes / 1_000_000;
    println!("one task merged: {} MB, shared: {} MB; sixteen shared: {} MB", mb(merged), mb(shared), mb(all));
    assert!(4 * all <= 5 * merged, "one task takes {merged} bytes, sixteen take {all}");
}

fn load_and_tell(backbone: &Path, load: &str) {
    let words: Vec<&str> = load.split(' ').collect();
    let [file, mode, tasks] = words[..] else { panic!("{load}") };
    let weights = if mode == "shared" { Weights::Shared } else { Weights::Merged };
    let loader = Loader::new(backbone, 1, weights);
    let load = |_| {
        let (plugin, sha256) = Plugin::read(Path::new(file)).unwrap();
        loader.load(plugin, sha256, Path::new(file), backbone, true).unwrap()
    };
    let tasks: Vec<LoadedTask> = (0..tasks.parse().unwrap()).map(load).collect();
    println!("\nbytes {}", ThisMachine.memory().expect("Linux tells").now);
    drop(tasks);
}
