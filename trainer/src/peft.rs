//! LoRA adapters as PEFT writes and reads them: `adapter_model.safetensors` and `adapter_config.json` in a folder.
//!
//! An adapter holds the factors only. Query and head stand beside it in a file of their own, which PEFT does not look at.

use std::collections::BTreeSet;
use std::path::Path;

use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::{Arch, Modules, Tensor, Tensors, modules};
use runtime::tensor::{read_safetensors, safetensors_bytes};
use serde::Deserialize;

use crate::Error;
use crate::fit::write_json;

/// The factors.
pub const MODEL: &str = "adapter_model.safetensors";
/// Rank, alpha and what is adapted.
pub const CONFIG: &str = "adapter_config.json";
/// Query and head, under a plugin's names.
pub const HEAD: &str = "query_and_head.safetensors";

/// What PEFT puts before the path of a module.
const PREFIX: &str = "base_model.model.";

/// What of `adapter_config.json` has a say in the numbers.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Config {
    /// Settings with which the same file means something else.
    const REFUSED: [&str; 8] = [
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "fan_in_fan_out",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
    ];

    fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|e| wrong(path, format!("it is no PEFT configuration ({e})")))?;
        if config.peft_type != "LORA" {
            return Err(wrong(path, format!("peft_type is {}, expected LORA", config.peft_type)));
        }
        let set = |key: &&str| {
            config.rest.get(*key).is_some_and(|value| {
                !(value.is_null()
                    || value == false
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty))
            })
        };
        let bias = config.rest.get("bias").is_some_and(|bias| bias != "none");
        match Self::REFUSED.iter().find(|key| set(key)).or_else(|| bias.then_some(&"bias")) {
            Some(key) => Err(wrong(path, format!("{key} is set, expected plain LoRA without it"))),
            None => Ok(config),
        }
    }

    /// Alpha of a plugin, which is divided by the rank.
    fn alpha(&self) -> f32 {
        let rank = self.r as f64;
        (if self.use_rslora { self.lora_alpha * rank.sqrt() } else { self.lora_alpha }) as f32
    }
}

fn wrong(path: &Path, problem: String) -> Error {
    Error::Adapter { path: path.into(), problem }
}

/// Writes the factors of a plugin's `content` as an adapter in `naming` (see [`Modules::naming`]), and query and head beside
/// it. Factors on a fused projection become those of query, key and value where the naming has these apart: the first factor
/// three times, the second split. The reverse cannot be had at the same rank.
pub fn write(
    folder: &Path,
    arch: &Arch,
    lora: &LoraSpec,
    content: &Tensors,
    naming: &str,
) -> Result<(), Error> {
    let known = modules(arch);
    let Some(Modules { paths, .. }) = known.iter().find(|modules| modules.naming == naming) else {
        let names: Vec<&str> = known.iter().map(|modules| modules.naming).collect();
        return Err(wrong(
            folder,
            format!("{} has no naming {naming}, expected {}", arch.family, names.join(" or ")),
        ));
    };
    let fused_names = paths.keys().any(|part| is_fused(part));
    if fused_names && lora.attention == AttentionLora::Separate {
        let problem = format!(
            "the run's LoRA is on query, key and value apart, but in {naming} naming these are one layer"
        );
        return Err(wrong(folder, problem));
    }
    let mut adapter = Tensors::new();
    for (part, path) in paths {
        let [a, mut b] = factors(content, part);
        if part == "patch" {
            b.shape.extend([1, 1]);
        }
        for (tensor, end) in [(a, "lora_A"), (b, "lora_B")] {
            adapter.insert(format!("{PREFIX}{path}.{end}.weight"), tensor);
        }
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let save = |name: &str, tensors: &Tensors, metadata| {
        let path = folder.join(name);
        runtime::files::write_atomically(&path, &safetensors_bytes(tensors, metadata))
            .map_err(Error::io(&path))
    };
    save(MODEL, &adapter, Some(("format", "pt")))?;
    let head = content.iter().filter(|(name, _)| !name.starts_with("lora."));
    save(HEAD, &head.map(|(name, tensor)| (name.clone(), tensor.clone())).collect(), None)?;
    // Whole paths: the end of one may also be that of a module in a text tower.
    let targets: Vec<&String> = paths.values().collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": null, "base_model_name_or_path": null, "inference_mode": true,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false,
        "use_rslora": false, "use_dora": false, "init_lora_weights": true, "modules_to_save": null,
        "target_modules": targets,
    });
    write_json(&folder.join(CONFIG), &config)
}

/// A and B of a module, of a plugin's content.
fn factors(content: &Tensors, part: &str) -> [Tensor; 2] {
    let get = |part: &str, factor: &str| content.get(&format!("lora.{part}.{factor}")).cloned();
    if let (Some(a), Some(b)) = (get(part, "A"), get(part, "B")) {
        return [a, b];
    }
    let (block, third) = part.rsplit_once('.').unwrap_or_default();
    let third = ["q", "k", "v"].iter().position(|name| *name == third).unwrap_or_default();
    let fused = format!("{block}.qkv");
    let [a, b] =
        ["A", "B"].map(|factor| get(&fused, factor).unwrap_or(Tensor { shape: vec![0, 0], data: vec![] }));
    let rows = b.shape[0] / 3;
    let each = b.data.len() / 3;
    let b = Tensor { shape: vec![rows, b.shape[1]], data: b.data[third * each..(third + 1) * each].to_vec() };
    [a, b]
}

/// Reads an adapter for a backbone of this shape: a plugin's tensors, those of the layers that it adapts, and query and head
/// where they stand beside it. `lora` must be the adapter's own rank, alpha and form; where it is separate and the adapter on
/// fused projections, these are split.
pub fn read(folder: &Path, arch: &Arch, lora: &LoraSpec) -> Result<Tensors, Error> {
    let (config_path, path) = (folder.join(CONFIG), folder.join(MODEL));
    let config = Config::read(&config_path)?;
    let adapter = read_safetensors(&path).map_err(runtime::Error::from)?.tensors;
    let mut layers = BTreeSet::new();
    for name in adapter.keys() {
        layers.insert(
            layer(name).ok_or_else(|| wrong(&path, format!("it holds {name}, which is no LoRA factor")))?.0,
        );
    }
    let known = modules(arch);
    let part_of = |modules: &Modules, layer: &str| {
        let is_it = |path: &str| {
            layer.strip_suffix(path).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        modules.paths.iter().find(|(_, path)| is_it(path)).map(|(part, _)| part.clone())
    };
    let strange =
        |modules: &&Modules| layers.iter().filter(|layer| part_of(modules, layer).is_none()).count();
    let Some(modules) = known.iter().min_by_key(strange) else {
        return Err(wrong(&path, "no naming of this backbone is known".into()));
    };
    if let Some(layer) = layers.iter().find(|layer| part_of(modules, layer).is_none()) {
        return Err(wrong(
            &path,
            format!(
                "it adapts {layer}, expected patch embedding and attention projections of a {} alone",
                arch.family
            ),
        ));
    }
    let fused = layers.iter().any(|layer| part_of(modules, layer).is_some_and(|part| is_fused(&part)));
    let attention = if fused && lora.attention == AttentionLora::Fused {
        AttentionLora::Fused
    } else {
        AttentionLora::Separate
    };
    let own = LoraSpec { rank: config.r, alpha: config.alpha(), attention };
    if own != *lora {
        let form = if fused { "fused" } else { "separate" };
        return Err(wrong(
            &config_path,
            format!(
                "its LoRA is not the task's; set lora = {{ rank = {}, alpha = {}, attention = '{form}' }} in the task file",
                own.rank, own.alpha
            ),
        ));
    }
    let mut content = Tensors::new();
    for (name, mut tensor) in adapter {
        let Some((part, factor)) = layer(&name).and_then(|(l, factor)| Some((part_of(modules, l)?, factor)))
        else {
            continue;
        };
        if part == "patch" && factor == "B" && tensor.shape.ends_with(&[1, 1]) {
            tensor.shape.truncate(2);
        }
        content.insert(format!("lora.{part}.{factor}"), tensor);
    }
    if fused && lora.attention == AttentionLora::Separate {
        content = apart(&content);
    }
    let head = folder.join(HEAD);
    if head.exists() {
        content.extend(read_safetensors(&head).map_err(runtime::Error::from)?.tensors);
    }
    Ok(content)
}

/// SHA-256 of the factors in a folder.
pub fn sha256(folder: &Path) -> Result<String, Error> {
    Ok(read_safetensors(&folder.join(MODEL)).map_err(runtime::Error::from)?.sha256)
}

/// The factors of fused projections as those of query, key and value.
fn apart(content: &Tensors) -> Tensors {
    let mut out = Tensors::new();
    for (name, tensor) in content {
        let Some(block) = name.strip_prefix("lora.").and_then(|name| name.strip_suffix(".qkv.A")) else {
            if !name.ends_with(".qkv.B") {
                out.insert(name.clone(), tensor.clone());
            }
            continue;
        };
        for part in ["q", "k", "v"] {
            let [a, b] = factors(content, &format!("{block}.{part}"));
            out.insert(format!("lora.{block}.{part}.A"), a);
            out.insert(format!("lora.{block}.{part}.B"), b);
        }
    }
    out
}

/// Whether a part is query, key and value in one layer.
fn is_fused(part: &str) -> bool {
    part.rsplit_once('.').is_some_and(|(_, name)| name == "qkv")
}

/// The path of the adapted module, and which factor a tensor is.
fn layer(name: &str) -> Option<(&str, &'static str)> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name).strip_suffix(".weight")?;
    let name = name.strip_suffix(".default").unwrap_or(name);
    let factor = |end: &str, factor| name.strip_suffix(end).map(|layer| (layer, factor));
    factor(".lora_A", "A").or_else(|| factor(".lora_B", "B"))
}
