//! The merged graph is the same bytes on every machine: these digests hold on x86-64 and, emulated, on aarch64.
//!
//! A change to the graph writer changes them; then every published plugin must be exported again, so let that be on purpose.

use std::path::{Path, PathBuf};

use firmware_config::{AttentionLora, LoraSpec, MissingViews};
use runtime::backbone::Backbone;
use runtime::graph::{GraphMeta, task_graph};
use runtime::plugin::{build_graph, content_sha256, expected_content, merge};
use runtime::tensor::{Tensor, Tensors, sha256};
use tests::fixture::{random_task, two_views};
use tests::reference::{adapter_content, tensors};

/// Another grid than the native one, so that positions are interpolated too.
const SIZE: [usize; 2] = [98, 84];

fn case(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(folder)
}

/// Of a case with an adapter.
fn digest(folder: &str, attention: AttentionLora) -> String {
    let case = case(folder);
    let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
    let content = adapter_content(&tensors(&case.join("adapter_model.safetensors")), backbone.arch.dim);
    digest_of(backbone, content, attention, SIZE)
}

/// Of a backbone with factors that are plain fractions.
fn digest_of_backbone(folder: &str, attention: AttentionLora, size: [usize; 2]) -> String {
    let backbone = Backbone::open(&case("backbones").join(folder).join("weights.safetensors")).unwrap();
    let lora = LoraSpec { rank: 4, alpha: 10.0, attention };
    let fractions = |shape: Vec<usize>| {
        let data = (0..shape.iter().product::<usize>()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 700.0);
        Tensor::new(shape.clone(), data.collect())
    };
    let content = expected_content(&backbone.arch, &lora, 1, &[])
        .into_iter()
        .map(|(name, shape)| (name, fractions(shape)));
    digest_of(backbone, content.collect(), attention, size)
}

fn digest_of(
    mut backbone: Backbone,
    mut content: Tensors,
    attention: AttentionLora,
    size: [usize; 2],
) -> String {
    for (i, x) in content.get_mut("query").unwrap().data.iter_mut().enumerate() {
        *x = (i as f32 - 20.0) / 7.0;
    }
    let lora = LoraSpec { rank: 4, alpha: 10.0, attention };
    merge(&mut backbone, &content, &lora).unwrap();
    let recipe = serde_json::from_str(
        r#"{"plane":"axial","size":[98,84],"intensity":{"kind":"percentile","low":0.5,"high":99.5}}"#,
    )
    .unwrap();
    let manifest =
        firmware_config::Manifest { lora: lora.clone(), recipe, ..random_task(&backbone).manifest };
    let meta = GraphMeta {
        task: "pinned".into(),
        version: "1.0.0".into(),
        content_sha256: content_sha256(&content, &manifest),
    };
    sha256(&task_graph(backbone, &content, size, &meta).unwrap())
}

#[test]
fn separate_projections() {
    assert_eq!(
        digest("lora", AttentionLora::Separate),
        "3a32190a0ca2a2f359adfd3a5e05a7e841839b3a27ed81be9adec8bd703411dd"
    );
}

#[test]
fn fused_projection_and_registers() {
    assert_eq!(
        digest("lora_fused", AttentionLora::Fused),
        "6bda1f3a93ac6ab1db973250425d3ee4dbcfcce397225c248beaa47b1fb9991d"
    );
}

#[test]
fn rotary_positions() {
    assert_eq!(
        digest_of_backbone("dinov3_fb_96x64", AttentionLora::Fused, [160, 112]),
        "83aa3ab67b3bad86ff347b7fa5f00d693c5b135016b2ee29c30360afff2ba227"
    );
}

#[test]
fn pooling_head() {
    assert_eq!(
        digest_of_backbone("siglip_hf_98x84", AttentionLora::Separate, [84, 126]),
        "d51bb0bbbce88c5bcf47163a613763cfd9bb50e56fb6949f17f2790b2cfa070d"
    );
}

#[test]
fn windows_and_channels() {
    assert_eq!(
        digest_of_backbone("davit_timm_48x48", AttentionLora::Fused, [96, 72]),
        "fceb95235da184eb87eaa12db5e4a9ffc0feeccc39dc7892111a6aa77a3e1b20"
    );
}

/// Two views: another plane and size, factors of their own, and one copy of what these do not touch.
#[test]
fn views() {
    let backbone = Backbone::open(&case("lora").join("weights.safetensors")).unwrap();
    let mut task = two_views(&backbone, MissingViews::Pool);
    task.manifest.content_sha256 = content_sha256(&task.content, &task.manifest);
    let graph = build_graph(backbone, &task.manifest, &task.content).unwrap();
    assert_eq!(sha256(&graph), "4f8ed23347207accfa23851d86d43b4e843e8957c20cee2548873b7b5457fa14");
}
