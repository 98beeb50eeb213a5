//! From a file's tensor names to the canonical ones.

use std::path::Path;

use super::{Arch, Backbone, BackboneError, Family, Mlp, Naming, PositionResize, Tensor, Tensors};

/// The resize variant of an implementation.
pub(super) fn resize(naming: Naming, registers: usize) -> PositionResize {
    match naming {
        Naming::Timm => PositionResize::BicubicAntialias,
        _ if registers > 0 => PositionResize::BicubicAntialias,
        Naming::Original => PositionResize::BicubicOffset,
        Naming::HuggingFace | Naming::Onnx => PositionResize::Bicubic,
    }
}

/// The names of one implementation.
struct Names {
    cls: &'static str,
    positions: &'static str,
    registers: &'static str,
    patch: &'static str,
    block: &'static str,
    norm: &'static str,
}

const HUGGING_FACE: Names = Names {
    cls: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    registers: "embeddings.register_tokens",
    patch: "embeddings.patch_embeddings.projection",
    block: "encoder.layer",
    norm: "layernorm",
};
const ORIGINAL: Names = Names {
    cls: "cls_token",
    positions: "pos_embed",
    registers: "register_tokens",
    patch: "patch_embed.proj",
    block: "blocks",
    norm: "norm",
};
const TIMM: Names = Names { registers: "reg_token", ..ORIGINAL };

fn names(naming: Naming) -> &'static Names {
    match naming {
        Naming::HuggingFace | Naming::Onnx => &HUGGING_FACE,
        Naming::Original => &ORIGINAL,
        Naming::Timm => &TIMM,
    }
}

/// Canonical part, and what an implementation calls it inside a block; the first that exists is taken.
const BLOCK_PARTS: [(&str, &[&str]); 6] = [
    ("norm1", &["norm1"]),
    ("norm2", &["norm2"]),
    ("o", &["attn.proj", "attention.output.dense", "attention.o_proj"]),
    ("fc1", &["mlp.fc1"]),
    ("fc2", &["mlp.fc2"]),
    ("down", &["mlp.w3", "mlp.weights_out"]),
];
const FUSED_QKV: &str = "attn.qkv";
const SEPARATE: [(&str, [&str; 2]); 3] = [
    ("q", ["attention.attention.query", "attention.q_proj"]),
    ("k", ["attention.attention.key", "attention.k_proj"]),
    ("v", ["attention.attention.value", "attention.v_proj"]),
];
const FUSED_GATE: [&str; 2] = ["mlp.w12", "mlp.weights_in"];
const SCALES: [(&str, [&str; 2]); 2] =
    [("scale1", ["ls1.gamma", "layer_scale1.lambda1"]), ("scale2", ["ls2.gamma", "layer_scale2.lambda1"])];

fn detect(tensors: &Tensors) -> Option<Naming> {
    let has = |name: &str| tensors.contains_key(name);
    if has(HUGGING_FACE.cls) {
        Some(Naming::HuggingFace)
    } else if !has(ORIGINAL.cls) {
        None
    } else if has(TIMM.registers) || !(has("mask_token") || has(ORIGINAL.registers)) {
        // timm drops the mask token, which the original keeps.
        Some(Naming::Timm)
    } else {
        Some(Naming::Original)
    }
}

/// Takes tensors by name, and keeps what is missing or misshapen.
struct Taker<'a> {
    tensors: Tensors,
    path: &'a Path,
    missing: Vec<String>,
    misshapen: Option<BackboneError>,
}

impl Taker<'_> {
    /// The first of `names` that exists, which must hold `shape` (leading axes of 1 are ignored).
    fn take(&mut self, names: &[String], shape: &[usize]) -> Tensor {
        let Some(name) = names.iter().find(|n| self.tensors.contains_key(*n)) else {
            self.missing.push(names[0].clone());
            return Tensor::new(shape, vec![0.0; shape.iter().product()]);
        };
        let tensor = self.tensors.remove(name).unwrap_or(Tensor { shape: vec![0], data: vec![] });
        let lead = tensor.shape.len().saturating_sub(shape.len());
        if tensor.shape[lead..] != *shape || tensor.shape[..lead].iter().any(|&d| d != 1) {
            self.misshapen.get_or_insert_with(|| BackboneError::Shape {
                path: self.path.into(),
                name: name.clone(),
                found: tensor.shape.clone(),
                expected: shape.into(),
            });
            return Tensor::new(shape, vec![0.0; shape.iter().product()]);
        }
        tensor.reshaped(shape)
    }

    fn any(&self, prefix: &str, names: &[&str]) -> bool {
        names.iter().any(|n| self.tensors.contains_key(&format!("{prefix}.{n}.weight")))
    }
}

/// Canonical tensors and sizes of whatever naming `tensors` are in.
pub(super) fn canonical(
    mut tensors: Tensors,
    naming: Option<Naming>,
    sha256: String,
    label: Option<String>,
    path: &Path,
) -> Result<Backbone, BackboneError> {
    let unknown = |detail: &str| BackboneError::Unknown { path: path.into(), detail: detail.into() };
    strip_prefix(&mut tensors);
    let naming = naming
        .or_else(|| detect(&tensors))
        .ok_or_else(|| unknown("neither cls_token nor embeddings.cls_token is there"))?;
    let names = names(naming);
    let shape = |name: &str| tensors.get(name).map(|t| t.shape.clone());

    let Some([d, 3, p, width]) =
        shape(&format!("{}.weight", names.patch)).and_then(|s| <[usize; 4]>::try_from(s).ok())
    else {
        return Err(unknown(&format!("no {}.weight of shape [d, 3, p, p]", names.patch)));
    };
    let Some([1, positions, _]) = shape(names.positions).and_then(|s| <[usize; 3]>::try_from(s).ok()) else {
        return Err(unknown(&format!("no {} of shape [1, n, d]", names.positions)));
    };
    let registers = shape(names.registers).map_or(0, |s| s.iter().rev().nth(1).copied().unwrap_or(0));
    // timm's register models have CLS's position already added to the CLS token, and no row for it.
    let cls_row = usize::from(!(naming == Naming::Timm && registers > 0));
    let native_grid = (positions - cls_row.min(positions)).isqrt();
    if p == 0 || d == 0 || p != width || native_grid == 0 || native_grid * native_grid + cls_row != positions
    {
        return Err(unknown(&format!("patches of {p}x{width} and {positions} positions, expected squares")));
    }
    let first = format!("{}.0", names.block);
    let is_block = |n: usize| tensors.contains_key(&format!("{}.{n}.norm1.weight", names.block));
    let depth = (0..tensors.len()).take_while(|&n| is_block(n)).count();
    if !SCALES[0].1.iter().any(|s| tensors.contains_key(&format!("{first}.{s}"))) {
        return Err(unknown("the first block has no LayerScale, as every DINOv2 block does"));
    }
    let rows = |names: &[&str]| {
        names.iter().find_map(|n| shape(&format!("{first}.{n}.weight"))).and_then(|s| s.first().copied())
    };
    let mlp = match (rows(&["mlp.fc1"]), rows(&FUSED_GATE)) {
        (Some(hidden), _) => Mlp::Gelu { hidden },
        (None, Some(twice)) => Mlp::SwiGlu { hidden: twice / 2 },
        (None, None) => return Err(unknown("the first block has no MLP")),
    };
    let config = Config::beside(path)?;
    let heads = match config.heads {
        Some(heads) if heads > 0 && d.is_multiple_of(heads) => heads,
        None if d.is_multiple_of(64) => d / 64,
        _ => return Err(BackboneError::Heads { path: path.into(), dim: d }),
    };
    let arch = Arch {
        family: Family::Dinov2,
        dim: d,
        depth,
        heads,
        patch: p,
        native_grid,
        registers,
        mlp,
        norm_eps: config.norm_eps.unwrap_or(1e-6),
        resize: resize(naming, registers),
    };
    let mut taker = Taker { tensors, path, missing: vec![], misshapen: None };
    let canonical = take_all(&mut taker, &arch, names, cls_row);
    if let Some(first) = taker.missing.first() {
        let count = taker.missing.len();
        return Err(BackboneError::Missing { path: path.into(), naming, count, first: first.clone() });
    }
    match taker.misshapen {
        Some(error) => Err(error),
        None => Ok(Backbone { arch, naming, sha256, tensors: canonical, label }),
    }
}

fn take_all(taker: &mut Taker<'_>, arch: &Arch, names: &Names, cls_row: usize) -> Tensors {
    let (d, p, cells) = (arch.dim, arch.patch, arch.native_grid * arch.native_grid);
    let mut out = Tensors::new();
    out.insert("cls".into(), taker.take(&[names.cls.into()], &[d]));
    if arch.registers > 0 {
        out.insert("registers".into(), taker.take(&[names.registers.into()], &[arch.registers, d]));
    }
    let mut table = taker.take(&[names.positions.into()], &[cells + cls_row, d]).data;
    let patches = table.split_off(cls_row * d);
    table.resize(d, 0.0);
    out.insert("position.cls".into(), Tensor::new([d], table));
    out.insert("position.patch".into(), Tensor::new([cells, d], patches));
    out.insert("patch.weight".into(), taker.take(&[format!("{}.weight", names.patch)], &[d, 3, p, p]));
    out.insert("patch.bias".into(), taker.take(&[format!("{}.bias", names.patch)], &[d]));
    for part in ["weight", "bias"] {
        out.insert(format!("norm.{part}"), taker.take(&[format!("{}.{part}", names.norm)], &[d]));
    }
    for n in 0..arch.depth {
        take_block(taker, arch, &format!("{}.{n}", names.block), &format!("blocks.{n}"), &mut out);
    }
    out
}

fn take_block(taker: &mut Taker<'_>, arch: &Arch, from: &str, to: &str, out: &mut Tensors) {
    let d = arch.dim;
    let all =
        |names: &[&str], part: &str| names.iter().map(|n| format!("{from}.{n}.{part}")).collect::<Vec<_>>();
    let weight_shape = |part: &str, outputs: usize, inputs: usize| match part {
        "weight" => vec![outputs, inputs],
        _ => vec![outputs],
    };
    for (canonical, theirs) in SCALES {
        let names: Vec<String> = theirs.iter().map(|n| format!("{from}.{n}")).collect();
        out.insert(format!("{to}.{canonical}"), taker.take(&names, &[d]));
    }
    let fused = taker.any(from, &[FUSED_QKV]);
    for part in ["weight", "bias"] {
        for (canonical, theirs) in BLOCK_PARTS {
            let shape = match (canonical, arch.mlp) {
                ("norm1" | "norm2", _) => vec![d],
                ("o", _) => weight_shape(part, d, d),
                ("fc1", Mlp::Gelu { hidden }) => weight_shape(part, hidden, d),
                ("fc2", Mlp::Gelu { hidden }) | ("down", Mlp::SwiGlu { hidden }) => {
                    weight_shape(part, d, hidden)
                }
                _ => continue,
            };
            out.insert(format!("{to}.{canonical}.{part}"), taker.take(&all(theirs, part), &shape));
        }
        if let Mlp::SwiGlu { hidden } = arch.mlp {
            let both = taker.take(&all(&FUSED_GATE, part), &weight_shape(part, 2 * hidden, d));
            split(both, &["gate", "up"], part, to, out);
        }
        if fused {
            let qkv = taker.take(&all(&[FUSED_QKV], part), &weight_shape(part, 3 * d, d));
            split(qkv, &["q", "k", "v"], part, to, out);
        } else {
            for (canonical, theirs) in SEPARATE {
                let tensor = taker.take(&all(&theirs, part), &weight_shape(part, d, d));
                out.insert(format!("{to}.{canonical}.{part}"), tensor);
            }
        }
    }
}

/// Splits the rows of a fused layer evenly, in order.
fn split(fused: Tensor, names: &[&str], part: &str, to: &str, out: &mut Tensors) {
    let mut shape = fused.shape;
    shape[0] /= names.len();
    let each = shape.iter().product();
    for (name, values) in names.iter().zip(fused.data.chunks_exact(each)) {
        out.insert(format!("{to}.{name}.{part}"), Tensor::new(shape.clone(), values.to_vec()));
    }
}

/// Takes off a prefix that all of a model's tensors share, such as `model.` or `backbone.`.
fn strip_prefix(tensors: &mut Tensors) {
    let prefix = tensors.keys().find_map(|name| {
        let prefix = name.strip_suffix("cls_token")?;
        Some(prefix.strip_suffix("embeddings.").unwrap_or(prefix).to_owned())
    });
    if let Some(prefix) = prefix.filter(|p| !p.is_empty()) {
        let old = std::mem::take(tensors);
        tensors.extend(old.into_iter().map(|(n, t)| (n.strip_prefix(&prefix).unwrap_or(&n).to_owned(), t)));
    }
}

/// What `config.json` beside a file says.
#[derive(Default)]
struct Config {
    heads: Option<usize>,
    norm_eps: Option<f32>,
}

impl Config {
    fn beside(path: &Path) -> Result<Self, BackboneError> {
        let path = path.with_file_name("config.json");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(Self::default()) };
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| BackboneError::Config { path: path.clone(), detail: format!("not JSON ({e})") })?;
        let first = |keys: &[&str]| {
            keys.iter().find_map(|k| json.get(k).or_else(|| json["model_args"].get(k))).cloned()
        };
        Ok(Self {
            heads: first(&["num_attention_heads", "num_heads", "heads"])
                .and_then(|v| v.as_u64())
                .map(|n| n as usize),
            norm_eps: first(&["layer_norm_eps", "norm_eps"]).and_then(|v| v.as_f64()).map(|x| x as f32),
        })
    }
}

/// The tensors under Hugging Face's names.
pub(super) fn to_hugging_face(backbone: &Backbone) -> Tensors {
    let (arch, names) = (&backbone.arch, &HUGGING_FACE);
    let d = arch.dim;
    let mut out = Tensors::new();
    let mut put = |name: String, tensor: Tensor| out.insert(name, tensor);
    let get = |name: &str| backbone.tensor(name).clone();
    put(names.cls.into(), get("cls").reshaped([1, 1, d]));
    if arch.registers > 0 {
        put(names.registers.into(), get("registers").reshaped([1, arch.registers, d]));
    }
    let table = [get("position.cls").data, get("position.patch").data].concat();
    put(names.positions.into(), Tensor::new([1, table.len() / d, d], table));
    for part in ["weight", "bias"] {
        put(format!("{}.{part}", names.patch), get(&format!("patch.{part}")));
        put(format!("{}.{part}", names.norm), get(&format!("norm.{part}")));
    }
    for n in 0..arch.depth {
        let (from, to) = (format!("blocks.{n}"), format!("{}.{n}", names.block));
        for (canonical, theirs) in SCALES {
            put(format!("{to}.{}", theirs[1]), get(&format!("{from}.{canonical}")));
        }
        for part in ["weight", "bias"] {
            for (canonical, theirs) in SEPARATE {
                put(format!("{to}.{}.{part}", theirs[0]), get(&format!("{from}.{canonical}.{part}")));
            }
            put(format!("{to}.attention.output.dense.{part}"), get(&format!("{from}.o.{part}")));
            for norm in ["norm1", "norm2"] {
                put(format!("{to}.{norm}.{part}"), get(&format!("{from}.{norm}.{part}")));
            }
            match arch.mlp {
                Mlp::Gelu { .. } => {
                    for fc in ["fc1", "fc2"] {
                        put(format!("{to}.mlp.{fc}.{part}"), get(&format!("{from}.{fc}.{part}")));
                    }
                }
                Mlp::SwiGlu { .. } => {
                    let (gate, up) = (get(&format!("{from}.gate.{part}")), get(&format!("{from}.up.{part}")));
                    let mut shape = gate.shape;
                    shape[0] *= 2;
                    put(
                        format!("{to}.mlp.weights_in.{part}"),
                        Tensor::new(shape, [gate.data, up.data].concat()),
                    );
                    put(format!("{to}.mlp.weights_out.{part}"), get(&format!("{from}.down.{part}")));
                }
            }
        }
    }
    out
}
