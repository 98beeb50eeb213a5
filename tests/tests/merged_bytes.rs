//! The merged graph is the same bytes on every machine: these digests hold on x86-64 and, emulated, on aarch64.
//!
//! A change to the graph writer changes them; then every published plugin must be exported again, so let that be on purpose.

use std::path::Path;

use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::Backbone;
use runtime::graph::{GraphMeta, task_graph};
use runtime::plugin::{content_sha256, merge};
use runtime::tensor::sha256;
use tests::reference::{adapter_content, tensors};

/// Another grid than the native one, so that positions are interpolated too.
const SIZE: [usize; 2] = [98, 84];

fn digest(folder: &str, attention: AttentionLora) -> String {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(folder);
    let mut backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
    let mut content = adapter_content(&tensors(&case.join("adapter_model.safetensors")), backbone.arch.dim);
    for (i, x) in content.get_mut("query").unwrap().data.iter_mut().enumerate() {
        *x = (i as f32 - 20.0) / 7.0;
    }
    let lora = LoraSpec { rank: 4, alpha: 10.0, attention };
    merge(&mut backbone, &content, &lora).unwrap();
    let recipe = serde_json::from_str(
        r#"{"plane":"axial","size":[98,84],"intensity":{"kind":"percentile","low":0.5,"high":99.5}}"#,
    )
    .unwrap();
    let meta = GraphMeta {
        task: "pinned".into(),
        version: "1.0.0".into(),
        content_sha256: content_sha256(&content, &lora, &recipe),
    };
    sha256(&task_graph(backbone, &content, SIZE, &meta).unwrap())
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
