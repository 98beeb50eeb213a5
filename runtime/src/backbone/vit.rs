//! Canonical tensors of a vision transformer.

use super::config::Config;
use super::detect::Found;
use super::layout::Part;
use super::load::{Stop, Taker, theirs};
use super::{
    Arch, BackboneError, Body, Embedding, Family, Mlp, Naming, Position, PositionResize, Tensor, Vit,
};

/// The resize variant of an implementation.
pub(super) fn resize(family: Family, naming: Naming, registers: usize) -> PositionResize {
    match (family, naming) {
        (_, Naming::Timm) => PositionResize::BicubicAntialias,
        (Family::Dinov2, _) if registers > 0 => PositionResize::BicubicAntialias,
        (_, Naming::Original) => PositionResize::BicubicOffset,
        (_, Naming::HuggingFace | Naming::Onnx) => PositionResize::Bicubic,
    }
}

/// Moves the tensors and tells the sizes.
pub(super) fn load(
    taker: &mut Taker<'_>,
    found: &Found,
    config: &Config,
    naming: Naming,
) -> Result<Arch, Stop> {
    let family = found.layout.family;
    let root = |part: &str| theirs(found.layout.root, part).or_else(|| theirs(found.layout.optional, part));
    let there = |taker: &Taker<'_>, part: &str| root(part).filter(|name| taker.has(name));
    let at = found.layout.blocks[0].at.trim_end_matches(".N");
    let block = Names { naming: found.layout.naming, at, parts: &found.blocks[0] };

    let patch = root("patch").unwrap_or_default();
    let weight = format!("{patch}.weight");
    let [d, channels, p, width] = taker.shape(&weight)?;
    if channels != 3 || p != width {
        return Err(taker.misshapen(&weight, &[d, channels, p, width], &[d, 3, p, p]).into());
    }
    let registers = theirs(found.layout.root, "registers").or_else(|| there(taker, "registers"));
    let count = registers.map_or(Ok(0), |name| taker.shape(name).map(|[_, n, _]: [usize; 3]| n))?;
    let embedding = if root("cls").is_some() { Embedding::Cls } else { Embedding::Pooled };
    let mlp = block.mlp(taker, config, family, d)?;
    let heads = config.heads(d)?.or_else(|| default_heads(family, d));
    let mut vit = Vit {
        depth: taker.count(block.at),
        heads: heads.ok_or_else(|| BackboneError::Heads { path: taker.path().into(), dim: d })?,
        embedding,
        registers: count,
        mlp,
        layer_scale: theirs(block.parts, "scale1").is_some(),
        position: Position::Rope { theta: config.rope_theta().unwrap_or(100.0) },
    };

    taker.layer("patch", patch, &[d, 3, p, p]);
    taker.layer("norm", root("norm").unwrap_or_default(), &[d]);
    if let Some(cls) = root("cls") {
        taker.tensor("cls", cls, &[d]);
    }
    if let Some(name) = registers {
        taker.tensor("registers", name, &[count, d]);
    }
    if let Some(name) = root("positions") {
        let distillation = there(taker, "distillation");
        // timm's DINOv2 with registers has CLS's position already added to the CLS token, and no row for it.
        let cls_row = embedding == Embedding::Cls && !(naming == Naming::Timm && count > 0);
        let grid = positions(taker, name, d, cls_row, distillation)?;
        vit.registers += usize::from(distillation.is_some());
        vit.position = Position::Table { grid, resize: resize(family, naming, count) };
    }
    for n in 0..vit.depth {
        block.load(taker, n, d, &vit, family);
    }
    if embedding == Embedding::Pooled {
        pooling_head(taker, &root, d, mlp.hidden());
    }
    let norm_eps = config.norm_eps().unwrap_or(match (family, naming) {
        (Family::Dinov3, _) => 1e-5,
        (Family::Vit, Naming::HuggingFace) => 1e-12,
        _ => 1e-6,
    });
    Ok(Arch { family, dim: d, patch: p, norm_eps, body: Body::Vit(vit) })
}

/// Heads are 64 wide, as in every published model but SigLIP's SO400M.
fn default_heads(family: Family, d: usize) -> Option<usize> {
    match (family, d) {
        (Family::Siglip, 1152) => Some(16),
        _ => d.is_multiple_of(64).then_some(d / 64),
    }
}

/// Splits the position table into the rows of CLS, of a distillation token, and of the patches; returns the side of its grid.
/// The distillation token, with its position, becomes a register: nothing else tells the two apart.
fn positions(
    taker: &mut Taker<'_>,
    name: &str,
    d: usize,
    cls_row: bool,
    distillation: Option<&str>,
) -> Result<usize, Stop> {
    let own = usize::from(cls_row) + usize::from(distillation.is_some());
    let rows = match taker.shape::<3>(name) {
        Ok([_, rows, _]) => rows,
        Err(Stop::Error(_)) => taker.shape::<2>(name)?[0],
        Err(missing) => return Err(missing),
    };
    let grid = rows.saturating_sub(own).isqrt();
    if grid == 0 || grid * grid + own != rows {
        let expected = grid.max(1) * grid.max(1) + own;
        return Err(taker.misshapen(name, &[rows, d], &[expected, d]).into());
    }
    let mut table = taker.take(name, &[rows, d]).data;
    let patches = table.split_off(own * d);
    taker.put("position.patch", Tensor::new([grid * grid, d], patches));
    if let Some(name) = distillation {
        let token = taker.take(name, &[d]);
        let position = table.split_off(d * usize::from(cls_row));
        let sum = token.data.iter().zip(&position).map(|(t, p)| t + p).collect();
        taker.put("registers", Tensor::new([1, d], sum));
    }
    if cls_row {
        taker.put("position.cls", Tensor::new([d], table));
    }
    Ok(grid)
}

/// The head that pools the patch tokens: query, key and value come fused, or key and value do.
fn pooling_head(
    taker: &mut Taker<'_>,
    root: &impl Fn(&str) -> Option<&'static str>,
    d: usize,
    hidden: usize,
) {
    let name = |part: &str| root(part).unwrap_or_default();
    taker.tensor("pool.probe", name("probe"), &[d]);
    let qkv = ["q", "k", "v"].map(|part| format!("pool.{part}"));
    taker.split_tensor(&qkv, "weight", name("pool.in_weight"), &[d, d]);
    taker.split_tensor(&qkv, "bias", name("pool.in_bias"), &[d]);
    for (part, shape) in [
        ("pool.o", vec![d, d]),
        ("pool.norm", vec![d]),
        ("pool.fc1", vec![hidden, d]),
        ("pool.fc2", vec![d, hidden]),
    ] {
        taker.layer(part, name(part), &shape);
    }
}

/// What a file calls the parts of its blocks.
struct Names<'a> {
    naming: Naming,
    at: &'a str,
    parts: &'a [Part],
}

impl Names<'_> {
    fn of(&self, n: usize, part: &str) -> Option<String> {
        theirs(self.parts, part).map(|name| format!("{}.{n}.{name}", self.at))
    }

    fn mlp(&self, taker: &Taker<'_>, config: &Config, family: Family, d: usize) -> Result<Mlp, Stop> {
        let rows = |part: &str| -> Result<Option<usize>, Stop> {
            let Some(name) = self.of(0, part) else { return Ok(None) };
            let name = format!("{name}.weight");
            match taker.shape(&name)? {
                [rows, columns] if columns == d => Ok(Some(rows)),
                found => Err(taker.misshapen(&name, &found, &[found[0], d]).into()),
            }
        };
        if let Some(hidden) = rows("gate")? {
            return Ok(Mlp::SwiGlu { hidden });
        }
        if let Some(both) = rows("gate_up")? {
            return Ok(Mlp::SwiGlu { hidden: both / 2 });
        }
        let hidden = rows("fc1")?.unwrap_or(0);
        let tanh = config.gelu_tanh()?.unwrap_or(family == Family::Siglip);
        Ok(if tanh { Mlp::GeluTanh { hidden } } else { Mlp::Gelu { hidden } })
    }

    fn load(&self, taker: &mut Taker<'_>, n: usize, d: usize, vit: &Vit, family: Family) {
        let hidden = vit.mlp.hidden();
        let to = |part: &str| format!("blocks.{n}.{part}");
        let from = |part: &str| self.of(n, part).unwrap_or_default();
        for part in ["norm1", "norm2"] {
            taker.layer(&to(part), &from(part), &[d]);
        }
        if vit.layer_scale {
            for part in ["scale1", "scale2"] {
                taker.tensor(&to(part), &from(part), &[d]);
            }
        }
        self.attention(taker, n, d, family);
        taker.layer(&to("o"), &from("o"), &[d, d]);
        match vit.mlp {
            Mlp::Gelu { .. } | Mlp::GeluTanh { .. } => {
                taker.layer(&to("fc1"), &from("fc1"), &[hidden, d]);
                taker.layer(&to("fc2"), &from("fc2"), &[d, hidden]);
            }
            Mlp::SwiGlu { .. } => {
                if let Some(both) = self.of(n, "gate_up") {
                    taker.split(&[to("gate"), to("up")], &both, &[hidden, d]);
                } else {
                    taker.layer(&to("gate"), &from("gate"), &[hidden, d]);
                    taker.layer(&to("up"), &from("up"), &[hidden, d]);
                }
                taker.layer(&to("down"), &from("down"), &[d, hidden]);
            }
        }
    }

    /// Query, key and value. A DINOv3's key has no bias: where a file holds one in a fused bias, the original masks it.
    fn attention(&self, taker: &mut Taker<'_>, n: usize, d: usize, family: Family) {
        let to = ["q", "k", "v"].map(|part| format!("blocks.{n}.{part}"));
        let Some(fused) = self.of(n, "qkv") else {
            for (to, part) in to.iter().zip(["q", "k", "v"]) {
                let from = self.of(n, part).unwrap_or_default();
                if family == Family::Dinov3 && part == "k" && !taker.has(&format!("{from}.bias")) {
                    taker.tensor(&format!("{to}.weight"), &format!("{from}.weight"), &[d, d]);
                    taker.put(format!("{to}.bias"), zeros(d));
                } else {
                    taker.layer(to, &from, &[d, d]);
                }
            }
            return;
        };
        if family != Family::Dinov3 {
            return taker.split(&to, &fused, &[d, d]);
        }
        taker.split_tensor(&to, "weight", &format!("{fused}.weight"), &[d, d]);
        let attention = fused.trim_end_matches("qkv");
        if self.naming == Naming::Timm {
            // In all blocks or in none.
            let biased = taker.has_any("attn.q_bias");
            for (to, part) in [(&to[0], "q_bias"), (&to[2], "v_bias")] {
                let name = format!("{attention}{part}");
                let bias = if biased { taker.take(&name, &[d]) } else { zeros(d) };
                taker.put(format!("{to}.bias"), bias);
            }
        } else {
            taker.split_tensor(&to, "bias", &format!("{fused}.bias"), &[d]);
        }
        taker.put(format!("{}.bias", to[1]), zeros(d));
    }
}

fn zeros(n: usize) -> Tensor {
    Tensor::new([n], vec![0.0; n])
}
