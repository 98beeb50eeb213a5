//! PEFT adapters in and out: what PEFT wrote comes back byte for byte, and what a plugin cannot hold is refused.

use std::fs;
use std::path::{Path, PathBuf};

use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::{Backbone, Tensor, Tensors};
use runtime::plugin::{expected_content, merge};
use runtime::tensor::read_safetensors;
use trainer::peft;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/reference").join(name)
}

fn backbone(case: &str) -> Backbone {
    Backbone::open(&fixture(case).join("weights.safetensors")).unwrap()
}

fn lora(attention: AttentionLora) -> LoraSpec {
    LoraSpec { rank: 4, alpha: 8.0, attention }
}

fn tensors(path: &Path) -> Tensors {
    read_safetensors(path).unwrap_or_else(|e| panic!("{e}")).tensors
}

/// Query and head of one label.
fn head(dim: usize) -> Tensors {
    let tensor = |shape: Vec<usize>| Tensor { data: vec![0.5; shape.iter().product()], shape };
    Tensors::from([
        ("query".into(), tensor(vec![dim])),
        ("head.weight".into(), tensor(vec![1, dim])),
        ("head.bias".into(), tensor(vec![1])),
    ])
}

#[test]
fn an_adapter_comes_back_as_peft_wrote_it() {
    for (case, attention, naming) in
        [("lora", AttentionLora::Separate, "hugging-face"), ("lora_fused", AttentionLora::Fused, "timm")]
    {
        let arch = backbone(case).arch;
        let mut content = peft::read(&fixture(case), &arch, &lora(attention)).unwrap();
        content.extend(head(arch.dim));
        let wanted = expected_content(&arch, &lora(attention), 1, &[]);
        assert_eq!(content.len(), wanted.len());
        assert!(wanted.iter().all(|(name, shape)| content[name].shape == *shape));

        let folder = tempfile::tempdir().unwrap();
        peft::write(folder.path(), &arch, &lora(attention), &content, naming).unwrap();
        let [theirs, ours] = [&fixture(case), folder.path()].map(|f| tensors(&f.join(peft::MODEL)));
        assert!(theirs == ours, "{case}: {:?}", ours.keys());
        let config = |f: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(f.join(peft::CONFIG)).unwrap()).unwrap()
        };
        let (theirs, ours) = (config(&fixture(case)), config(folder.path()));
        for (key, value) in ours.as_object().unwrap() {
            match key.as_str() {
                "target_modules" => {
                    // Theirs are ends of ours.
                    let list =
                        |v: &serde_json::Value| -> Vec<String> { serde_json::from_value(v.clone()).unwrap() };
                    let ends = list(&theirs[key]);
                    assert!(list(value).iter().all(|path| ends.iter().any(|end| path.ends_with(end))));
                }
                "lora_alpha" => assert_eq!(theirs[key].as_f64(), value.as_f64()),
                _ => assert_eq!(&theirs[key], value, "{key}"),
            }
        }
        // Query and head come back too.
        assert_eq!(peft::read(folder.path(), &arch, &lora(attention)).unwrap(), content);
    }
}

#[test]
fn factors_of_a_fused_projection_are_split_without_loss() {
    let backbone = backbone("lora_fused");
    let (fused, separate) = (lora(AttentionLora::Fused), lora(AttentionLora::Separate));
    let mut content = peft::read(&fixture("lora_fused"), &backbone.arch, &fused).unwrap();
    content.extend(head(backbone.arch.dim));
    let merged = |content: &Tensors, lora: &LoraSpec| {
        let mut backbone = backbone.clone();
        merge(&mut backbone, content, lora).unwrap();
        backbone.tensors
    };
    let expected = merged(&content, &fused);
    assert!(expected != backbone.tensors);
    // On reading.
    let mut split = peft::read(&fixture("lora_fused"), &backbone.arch, &separate).unwrap();
    split.extend(head(backbone.arch.dim));
    assert!(merged(&split, &separate) == expected);
    // On writing, in both of Hugging Face's namings.
    for naming in ["hugging-face", "hugging-face-newer"] {
        let folder = tempfile::tempdir().unwrap();
        peft::write(folder.path(), &backbone.arch, &fused, &content, naming).unwrap();
        let back = peft::read(folder.path(), &backbone.arch, &separate).unwrap();
        assert!(merged(&back, &separate) == expected, "{naming}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = peft::write(folder.path(), &backbone.arch, &separate, &split, "timm").unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("one layer"), "{error}");
    let error = peft::write(folder.path(), &backbone.arch, &fused, &content, "keras").unwrap_err();
    assert!(
        error.to_string().contains("no naming keras, expected original or timm or hugging-face"),
        "{error}"
    );
}

#[test]
fn every_family_goes_out_and_comes_back() {
    for (case, namings) in [
        ("dinov3_fb_96x64", &["original", "timm", "hugging-face", "hugging-face-newer"][..]),
        ("dinov3_hf_gated_96x64", &["hugging-face"]),
        ("vit_hf_96x80", &["hugging-face", "hugging-face-newer", "timm"]),
        ("siglip_hf_98x84", &["hugging-face", "hugging-face-newer"]),
        ("davit_timm_48x48", &["timm", "hugging-face", "original"]),
    ] {
        let backbone = backbone(&format!("backbones/{case}"));
        for naming in namings {
            let separate = naming.starts_with("hugging-face") && !case.starts_with("davit");
            let lora = lora(if separate { AttentionLora::Separate } else { AttentionLora::Fused });
            let content: Tensors = expected_content(&backbone.arch, &lora, 1, &[])
                .into_iter()
                .enumerate()
                .map(|(n, (name, shape))| {
                    let data = (0..shape.iter().product()).map(|i| (n * 1000 + i) as f32).collect();
                    (name, Tensor { shape, data })
                })
                .collect();
            let folder = tempfile::tempdir().unwrap();
            peft::write(folder.path(), &backbone.arch, &lora, &content, naming).unwrap();
            assert!(peft::read(folder.path(), &backbone.arch, &lora).unwrap() == content, "{case} {naming}");
            // Each adapted module is a layer of the file in that naming, but for a prefix.
            if backbone.naming.to_string().to_lowercase().replace(' ', "-") == *naming {
                let weights = tensors(&fixture(&format!("backbones/{case}")).join("weights.safetensors"));
                for name in tensors(&folder.path().join(peft::MODEL)).keys() {
                    let layer =
                        name.strip_prefix("base_model.model.").unwrap().rsplit_once(".lora_").unwrap().0;
                    let layer = layer.strip_prefix("vision_model.").unwrap_or(layer);
                    assert!(weights.contains_key(&format!("{layer}.weight")), "{case}: {layer}");
                }
            }
        }
    }
}

#[test]
fn adapters_that_a_plugin_cannot_hold_are_refused() {
    let arch = backbone("lora").arch;
    let spec = lora(AttentionLora::Separate);
    let folder = tempfile::tempdir().unwrap();
    let (model, config) = (folder.path().join(peft::MODEL), folder.path().join(peft::CONFIG));
    let text = fs::read_to_string(fixture("lora").join(peft::CONFIG)).unwrap();
    let adapter = tensors(&fixture("lora").join(peft::MODEL));
    let refused = |json: &str, adapter: &Tensors, lora: &LoraSpec, part: &str| {
        fs::write(&config, json).unwrap();
        fs::write(&model, runtime::tensor::safetensors_bytes(adapter, None)).unwrap();
        let error = peft::read(folder.path(), &arch, lora).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains(part), "{error}");
    };
    for (from, to, part) in [
        (r#""use_dora": false"#, r#""use_dora": true"#, "use_dora"),
        (r#""rank_pattern": {}"#, r#""rank_pattern": {"query": 8}"#, "rank_pattern"),
        (r#""modules_to_save": null"#, r#""modules_to_save": ["layernorm"]"#, "modules_to_save"),
        (r#""bias": "none""#, r#""bias": "all""#, "bias"),
        (r#""peft_type": "LORA""#, r#""peft_type": "IA3""#, "IA3"),
        (r#""r": 4"#, r#""r": 2"#, "rank = 2, alpha = 8, attention = 'separate'"),
        (r#""use_rslora": false"#, r#""use_rslora": true"#, "alpha = 16"),
        ("{", "", "no PEFT configuration"),
    ] {
        assert!(text.contains(from));
        refused(&text.replacen(from, to, 1), &adapter, &spec, part);
    }
    refused(&text, &adapter, &lora(AttentionLora::Fused), "attention = 'separate'");
    let mut more = adapter.clone();
    let factor = Tensor { shape: vec![4, 48], data: vec![0.0; 192] };
    more.insert("base_model.model.encoder.layer.0.mlp.fc1.lora_A.weight".into(), factor.clone());
    refused(&text, &more, &spec, "adapts encoder.layer.0.mlp.fc1");
    let mut more = adapter;
    more.insert("base_model.model.layernorm.weight".into(), factor);
    refused(&text, &more, &spec, "layernorm.weight");
    fs::remove_file(&model).unwrap();
    fs::write(&config, &text).unwrap();
    let error = peft::read(folder.path(), &arch, &spec).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains(peft::MODEL), "{error}");
}
