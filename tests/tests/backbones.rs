//! Backbone files: every naming of a family gives the same canonical tensors, whatever the number type and the number of
//! files; what is missing or foreign is named.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::backbone::{Backbone, Naming};
use runtime::tensor::{Tensor, Tensors, read_safetensors, safetensors_bytes, sha256};
use tempfile::TempDir;
use tests::programs::{program, run};
use tests::reference::{difference, tensors};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference/backbones").join(name)
}

fn weights(name: &str) -> Tensors {
    tensors(&case(name).join("weights.safetensors"))
}

fn open(name: &str) -> Backbone {
    Backbone::open(&case(name).join("weights.safetensors")).unwrap()
}

/// A folder with the configuration of a case.
fn folder(of: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case(of).join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

/// Opens `tensors` as a file beside the configuration of a case.
fn opened(tensors: &Tensors, of: &str) -> Result<Backbone, String> {
    let folder = folder(of);
    let path = folder.path().join("model.safetensors");
    fs::write(&path, safetensors_bytes(tensors, None)).unwrap();
    Backbone::open(&path).map_err(|error| {
        assert!(error.is_bad_input(), "{error}");
        error.to_string()
    })
}

/// The tensors under names with each pair's first word replaced by its second.
fn renamed(tensors: Tensors, words: &[(&str, &str)]) -> Tensors {
    let name = |name: String| words.iter().fold(name, |name, (from, to)| name.replace(from, to));
    tensors.into_iter().map(|(n, tensor)| (name(n), tensor)).collect()
}

#[track_caller]
fn same(found: &Backbone, expected: &Backbone) {
    assert_eq!(found.arch, expected.arch);
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), expected.tensors.keys().collect::<Vec<_>>());
    assert!(found.tensors == expected.tensors);
}

#[test]
fn dinov3_in_timms_names() {
    let mut all = renamed(
        weights("dinov3_fb_96x64"),
        &[("storage_tokens", "reg_token"), ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")],
    );
    all.retain(|name, _| !(name.contains("mask") || name.starts_with("rope_embed")));
    for n in 0..3 {
        let bias = all.remove(&format!("blocks.{n}.attn.qkv.bias")).unwrap();
        let third = bias.data.len() / 3;
        for (part, values) in [("q_bias", &bias.data[..third]), ("v_bias", &bias.data[2 * third..])] {
            all.insert(format!("blocks.{n}.attn.{part}"), Tensor::new([third], values.to_vec()));
        }
    }
    let found = opened(&all, "dinov3_fb_96x64").unwrap();
    assert_eq!(found.naming, Naming::Timm);
    same(&found, &open("dinov3_fb_96x64"));
    // Left out in one block, they are missing; left out in all, they are zero.
    let mut partial = all.clone();
    partial.retain(|name, _| name != "blocks.1.attn.q_bias");
    let error = opened(&partial, "dinov3_fb_96x64").unwrap_err();
    assert!(error.contains("lacks 1") && error.contains("blocks.1.attn.q_bias"), "{error}");
    all.retain(|name, _| !name.ends_with("_bias"));
    let found = opened(&all, "dinov3_fb_96x64").unwrap();
    assert!(found.tensors["blocks.1.q.bias"].data.iter().all(|x| *x == 0.0));
}

#[test]
fn dinov3_in_newer_names_and_behind_a_prefix() {
    let expected = open("dinov3_hf_gated_96x64");
    let newer = renamed(weights("dinov3_hf_gated_96x64"), &[("layer.", "model.layer.")]);
    same(&opened(&newer, "dinov3_hf_gated_96x64").unwrap(), &expected);
    let wrapped = newer.into_iter().map(|(name, tensor)| (format!("backbone.{name}"), tensor)).collect();
    same(&opened(&wrapped, "dinov3_hf_gated_96x64").unwrap(), &expected);
}

#[test]
fn dinov2_and_vit_in_newer_names() {
    let words = [
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ];
    for name in ["dinov2_hf_98x84", "vit_hf_96x80"] {
        same(&opened(&renamed(weights(name), &words), name).unwrap(), &open(name));
    }
}

#[test]
fn vit_in_timms_names_and_with_a_distillation_token() {
    let expected = open("vit_hf_96x80");
    let mut all = renamed(
        weights("vit_hf_96x80"),
        &[
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.", ""),
            ("encoder.layer.", "blocks."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("layernorm", "norm"),
        ],
    );
    for (n, end) in (0..3).flat_map(|n| [(n, "weight"), (n, "bias")]) {
        let parts = ["query", "key", "value"]
            .map(|part| all.remove(&format!("blocks.{n}.attention.attention.{part}.{end}")).unwrap());
        let mut shape = parts[0].shape.clone();
        shape[0] *= 3;
        let data = parts.map(|part| part.data).concat();
        all.insert(format!("blocks.{n}.attn.qkv.{end}"), Tensor::new(shape, data));
    }
    let found = opened(&all, "vit_hf_96x80").unwrap();
    assert_eq!(found.naming, Naming::Timm);
    assert!(found.tensors == expected.tensors);

    let mut distilled = weights("vit_hf_96x80");
    let token = Tensor::new([1, 1, 48], (0..48).map(|i| i as f32).collect());
    distilled.insert("embeddings.distillation_token".into(), token);
    let table = distilled.get_mut("embeddings.position_embeddings").unwrap();
    let row: Vec<f32> = (0..48).map(|i| 0.5 - i as f32).collect();
    table.data.splice(48..48, row);
    table.shape[1] += 1;
    let found = opened(&distilled, "vit_hf_96x80").unwrap();
    // With its position the token is a register.
    assert_eq!(found.tensors["registers"], Tensor::new([1, 48], vec![0.5; 48]));
    assert_eq!(found.tensors["position.patch"], expected.tensors["position.patch"]);
    assert_eq!(found.tensors["position.cls"], expected.tensors["position.cls"]);
}

#[test]
fn siglip_alone_and_beside_its_text_tower() {
    let expected = open("siglip_hf_98x84");
    for prefix in ["vision_model.", "model.vision_model."] {
        let mut all: Tensors = weights("siglip_hf_98x84")
            .into_iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor))
            .collect();
        for n in 0..9 {
            let name = format!("text_model.encoder.layers.{n}.self_attn.q_proj.weight");
            all.insert(name, Tensor::new([2, 2], vec![1.0; 4]));
        }
        all.insert("logit_scale".into(), Tensor::new([1], vec![4.0]));
        same(&opened(&all, "siglip_hf_98x84").unwrap(), &expected);
    }
}

#[test]
fn davit_in_medimageinsights_names() {
    let mut all = Tensors::new();
    for (name, tensor) in weights("davit_timm_48x48") {
        let attention = if name.contains("spatial") { "window_attn" } else { "channel_attn" };
        let name = name
            .replace("stem.conv", "convs.0.proj")
            .replace("stem.norm", "convs.0.norm")
            .replace("stages.1.downsample.conv", "convs.1.proj")
            .replace("stages.1.downsample.norm", "convs.1.norm")
            .replace("head.norm", "norms")
            .replace("cpe1.proj", "conv1.fn.dw")
            .replace("cpe2.proj", "conv2.fn.dw")
            .replace("attn.", &format!("{attention}.fn."))
            .replace("block.norm1", &format!("block.{attention}.norm"))
            .replace("norm2", "ffn.norm")
            .replace("mlp.", "ffn.fn.net.");
        let name = match name.strip_prefix("stages.") {
            Some(rest) => format!("blocks.{}", rest.replacen(".blocks", "", 1)),
            None => name,
        };
        all.insert(format!("image_encoder.{name}"), tensor);
    }
    all.insert("lang_encoder.blocks.0.attn.qkv.weight".into(), Tensor::new([1, 1], vec![1.0]));
    all.insert("image_projection".into(), Tensor::new([48, 2], vec![0.0; 96]));
    let found = opened(&all, "davit_timm_48x48").unwrap();
    assert_eq!((found.naming, found.licence()), (Naming::Original, "MIT"));
    same(&found, &open("davit_timm_48x48"));
}

#[test]
fn a_backbone_in_half_precision() {
    // Values that both formats hold exactly: seven bits of mantissa, exponents from -14 to 15.
    let round = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
    let small = |x: f32| if x.abs() < 6.2e-5 { 0.0 } else { round(x) };
    let mut rounded = weights("dinov3_fb_96x64");
    for tensor in rounded.values_mut() {
        tensor.data.iter_mut().for_each(|x| *x = small(*x));
    }
    let expected = opened(&rounded, "dinov3_fb_96x64").unwrap();
    let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
    let f16 = |x: f32| {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let rest = if x == 0.0 { 0 } else { ((bits & 0x7fff_ffff) >> 13) - ((127 - 15) << 10) };
        (sign | rest) as u16
    };
    for (kind, convert) in [("BF16", &bf16 as &dyn Fn(f32) -> u16), ("F16", &f16)] {
        let folder = folder("dinov3_fb_96x64");
        let path = folder.path().join("model.safetensors");
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, tensor) in &rounded {
            let start = data.len();
            data.extend(tensor.data.iter().flat_map(|x| convert(*x).to_le_bytes()));
            let info = serde_json::json!({ "dtype": kind, "shape": tensor.shape, "data_offsets": [start, data.len()] });
            header.insert(name.clone(), info);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        fs::write(&path, bytes).unwrap();
        same(&Backbone::open(&path).unwrap(), &expected);
    }
}

/// Splits a case into two shards with an index, and returns the index.
fn shards(folder: &Path, of: &str) -> PathBuf {
    let mut map = serde_json::Map::new();
    let mut parts = [Tensors::new(), Tensors::new()];
    for (n, (name, tensor)) in weights(of).into_iter().enumerate() {
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", n % 2 + 1).into());
        parts[n % 2].insert(name, tensor);
    }
    for (n, part) in parts.iter().enumerate() {
        let path = folder.join(format!("model-0000{}-of-00002.safetensors", n + 1));
        fs::write(path, safetensors_bytes(part, None)).unwrap();
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    let path = folder.join("model.safetensors.index.json");
    fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
    path
}

#[test]
fn a_backbone_in_shards() {
    let folder = folder("vit_hf_96x80");
    let index = shards(folder.path(), "vit_hf_96x80");
    let found = Backbone::open(&index).unwrap();
    same(&found, &open("vit_hf_96x80"));
    // What `sha256sum model-*.safetensors | sha256sum` says.
    let file = |n| format!("model-0000{n}-of-00002.safetensors");
    let line = |n| format!("{}  {}\n", sha256(&fs::read(folder.path().join(file(n))).unwrap()), file(n));
    assert_eq!(found.sha256, sha256((line(1) + &line(2)).as_bytes()));
    assert_eq!(Backbone::open(folder.path()).unwrap().sha256, found.sha256);

    let refused = |part: &str| {
        let error = Backbone::open(folder.path()).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains(part), "{error}");
    };
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("pooler.dense.bias", "pooler.dense.beta")).unwrap();
    refused("pooler.dense.beta");
    fs::write(&index, text.replace("model-00002", "../model-00002")).unwrap();
    refused("expected one beside it");
    fs::write(&index, &text[..text.len() / 2]).unwrap();
    refused("no index");
    fs::write(&index, r#"{"weight_map":{}}"#).unwrap();
    refused("names no tensors");
    fs::write(&index, &text).unwrap();
    fs::remove_file(folder.path().join(file(2))).unwrap();
    refused("model-00002-of-00002.safetensors");
    fs::remove_file(&index).unwrap();
    refused("neither model.safetensors.index.json nor model.safetensors");
}

#[test]
fn what_is_missing_is_named_with_the_nearest_family() {
    for (of, family, lost) in [
        ("dinov2_fb_98x84", "DINOv2 backbone in original", "blocks.1.mlp.fc1.weight"),
        ("dinov3_fb_96x64", "DINOv3 backbone in original", "storage_tokens"),
        ("dinov3_hf_gated_96x64", "DINOv3 backbone in Hugging Face", "layer.2.attention.q_proj.bias"),
        ("vit_hf_96x80", "ViT backbone in Hugging Face", "embeddings.patch_embeddings.projection.weight"),
        ("siglip_hf_98x84", "SigLIP backbone in Hugging Face", "head.probe"),
        ("davit_timm_48x48", "DaViT backbone in timm", "stages.1.blocks.0.channel_block.attn.qkv.weight"),
        ("davit_hf_60x44", "DaViT backbone in Hugging Face", "convs.1.conv.weight"),
    ] {
        let mut all = weights(of);
        all.remove(lost).unwrap();
        let error = opened(&all, of).unwrap_err();
        assert!(error.contains(family) && error.contains(lost), "{error}");
    }
    // As if the second half had not arrived.
    let mut half = weights("dinov3_fb_96x64");
    half.retain(|name, _| !name.starts_with("blocks.2") || name == "blocks.2.attn.proj.bias");
    let error = opened(&half, "dinov3_fb_96x64").unwrap_err();
    assert!(
        error.contains("lacks 13") && error.contains("blocks.2.norm1.weight") && error.contains("7 more"),
        "{error}"
    );
}

#[test]
fn foreign_files_are_refused() {
    let adapter = case("../lora/adapter_model.safetensors");
    let error = Backbone::open(&adapter).unwrap_err().to_string();
    assert!(error.contains("no backbone that is known here"), "{error}");

    // What nobody would read changes the numbers: query norms in the blocks, a norm before them.
    for (of, extra) in [
        ("dinov3_fb_96x64", "blocks.0.attn.q_norm.weight"),
        ("dinov2_timm_98x84", "norm_pre.weight"),
        ("siglip_hf_98x84", "encoder.layers.1.layer_norm3.bias"),
    ] {
        let mut all = weights(of);
        all.insert(extra.into(), Tensor::new([4], vec![1.0; 4]));
        let error = opened(&all, of).unwrap_err();
        assert!(error.contains(extra) && error.contains("another model"), "{error}");
    }
    // The DaViT whose embeddings have no overlap, and whose channel attention is another.
    let mut other = weights("davit_timm_48x48");
    other.insert(
        "stages.1.downsample.conv.weight".into(),
        Tensor::new([48, 24, 2, 2], vec![0.0; 48 * 24 * 4]),
    );
    let error = opened(&other, "davit_timm_48x48").unwrap_err();
    assert!(error.contains("[48, 24, 2, 2], expected [48, 24, 3, 3]"), "{error}");
}

#[test]
fn configurations_are_believed_or_refused() {
    let folder = folder("siglip_hf_98x84");
    let path = folder.path().join("model.safetensors");
    fs::write(&path, safetensors_bytes(&weights("siglip_hf_98x84"), None)).unwrap();
    let with = |json: &str| {
        fs::write(folder.path().join("config.json"), json).unwrap();
        Backbone::open(&path).map_err(|error| error.to_string())
    };
    let expected = open("siglip_hf_98x84");
    let nested = r#"{"vision_config":{"num_attention_heads":3,"layer_norm_eps":1e-6},"text_config":{"num_attention_heads":7}}"#;
    assert_eq!(with(nested).unwrap().arch, expected.arch);
    for (json, part) in [
        (r#"{"num_attention_heads":5}"#, "5 attention heads do not divide a width of 48"),
        (r#"{"num_attention_heads":3,"hidden_act":"relu"}"#, "relu"),
        ("{}", "num_attention_heads"),
        ("{", "not JSON"),
    ] {
        let error = with(json).unwrap_err();
        assert!(error.contains("config.json") && error.contains(part), "{error}");
    }
}

#[test]
fn the_command_tells_what_a_file_is_and_runs_it() {
    for (of, says) in [
        ("dinov3_hf_gated_96x64", ["DINOv3", "SwiGLU, 256 wide", "DINOv3 License", "rotary"]),
        ("vit_hf_96x80", ["ViT", "GELU, 192 wide", "Apache-2.0", "cls-attention"]),
        ("siglip_hf_98x84", ["SigLIP", "GELU (tanh), 192 wide", "5 x 5 patches", "pool-attention"]),
        ("davit_hf_60x44", ["DaViT", "widths 24, 48", "MIT", "pooled-similarity"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.safetensors");
        let mut command = program("scanside");
        command.arg("backbone").arg(case(of).join("weights.safetensors"));
        command.arg("--input").arg(case(of).join("case.safetensors")).arg("--out").arg(&out);
        let outcome = run(&mut command);
        outcome.success();
        for part in says.into_iter().chain([open(of).sha256.as_str()]) {
            assert!(outcome.stdout.contains(part), "{part}: {outcome:?}");
        }
        let (found, expected) = (tensors(&out), tensors(&case(of).join("case.safetensors")));
        assert_eq!(found.len(), 3, "{:?}", found.keys());
        for (name, expected) in expected.iter().filter(|(name, _)| *name != "input") {
            assert!(difference(&found[name], expected) <= 5e-5, "{of}: {name}");
        }
    }
    let mut command = program("scanside");
    command.arg("backbone").arg(case("davit_hf_60x44").join("weights.safetensors")).args(["--blocks", "1"]);
    run(&mut command).refused("stages have widths of their own");
}

#[test]
fn what_hugging_face_can_say_is_saved_and_read_back() {
    for of in [
        "dinov2_hf_swiglu_70x70",
        "dinov3_fb_96x64",
        "dinov3_hf_gated_96x64",
        "vit_hf_96x80",
        "siglip_hf_98x84",
    ] {
        let backbone = open(of);
        let folder = folder(of);
        let path = folder.path().join("model.safetensors");
        fs::write(&path, backbone.to_hugging_face("saved").unwrap()).unwrap();
        let again = Backbone::open(&path).unwrap();
        same(&again, &backbone);
        assert_eq!((again.naming, again.name()), (Naming::HuggingFace, "saved".into()));
        if of.contains("_hf_") {
            let mut names = weights(of);
            names.retain(|name, _| !(name.contains("mask_token") || name.starts_with("pooler")));
            let saved = read_safetensors(&path).unwrap().tensors;
            assert!(saved == names, "{of}: {:?}", saved.keys());
        }
    }
    for of in ["dinov2_fb_98x84", "davit_hf_60x44"] {
        assert!(open(of).to_hugging_face("saved").is_none(), "{of}");
    }
}
