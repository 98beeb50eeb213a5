//! Canonical tensors under Hugging Face's names.

use super::layout::{ALL, Layout, Part, is_tensor};
use super::{Backbone, Body, Embedding, Family, Mlp, Naming, Position, Tensor, Tensors, Vit, vit};

/// The tensors under Hugging Face's names; `None` for what those cannot say.
pub(super) fn hugging_face(backbone: &Backbone) -> Option<Tensors> {
    let arch = &backbone.arch;
    let Body::Vit(sizes) = &arch.body else { return None };
    if let Position::Table { resize, .. } = sizes.position
        && resize != vit::resize(arch.family, Naming::HuggingFace, sizes.registers)
    {
        return None;
    }
    // A distillation token has become a register with its position added.
    if arch.family == Family::Vit && sizes.registers > 0 {
        return None;
    }
    let is_it = |layout: &&&Layout| layout.family == arch.family && layout.naming == Naming::HuggingFace;
    let layout = ALL.iter().find(is_it)?;
    let mut writer = Writer { backbone, sizes, out: Tensors::new() };
    for &part in layout.root.iter().chain(layout.optional) {
        writer.root(part);
    }
    let block = &layout.blocks[0];
    let gated = matches!(sizes.mlp, Mlp::SwiGlu { .. });
    let has_gate = |way: &&&[Part]| way.iter().any(|(part, _)| part.starts_with("gate")) == gated;
    let mlp = block.mlp.iter().find(has_gate)?;
    for n in 0..sizes.depth {
        let at = block.at.replace('N', &n.to_string());
        for &(part, theirs) in block.parts.iter().chain(block.attention[0]).chain(*mlp) {
            writer.block(&format!("blocks.{n}"), part, &format!("{at}.{theirs}"));
        }
    }
    Some(writer.out)
}

struct Writer<'a> {
    backbone: &'a Backbone,
    sizes: &'a Vit,
    out: Tensors,
}

impl Writer<'_> {
    fn get(&self, name: &str) -> Tensor {
        self.backbone.tensor(name).clone()
    }

    /// Several tensors, one below the other.
    fn stacked(&self, names: &[String]) -> Tensor {
        let mut all = self.get(&names[0]);
        for name in &names[1..] {
            all.data.extend(&self.backbone.tensor(name).data);
            all.shape[0] += self.backbone.tensor(name).shape[0];
        }
        all
    }

    fn layer(&mut self, from: &str, theirs: &str) {
        for end in ["weight", "bias"] {
            let tensor = self.get(&format!("{from}.{end}"));
            self.out.insert(format!("{theirs}.{end}"), tensor);
        }
    }

    fn root(&mut self, (part, theirs): Part) {
        let d = self.backbone.arch.dim;
        let tensor = match part {
            "mask" | "distillation" | "periods" => return,
            "registers" if self.sizes.registers == 0 => return,
            "cls" => self.get("cls").reshaped([1, 1, d]),
            "registers" => self.get("registers").reshaped([1, self.sizes.registers, d]),
            "probe" => self.get("pool.probe").reshaped([1, 1, d]),
            "positions" if self.sizes.embedding == Embedding::Pooled => self.get("position.patch"),
            "positions" => {
                // timm adds CLS's position to the CLS token where there are registers.
                let cls = self.backbone.tensors.get("position.cls").map_or(vec![0.0; d], |t| t.data.clone());
                let table = [cls, self.get("position.patch").data].concat();
                Tensor::new([1, table.len() / d, d], table)
            }
            "pool.in_weight" => self.stacked(&["q", "k", "v"].map(|part| format!("pool.{part}.weight"))),
            "pool.in_bias" => self.stacked(&["q", "k", "v"].map(|part| format!("pool.{part}.bias"))),
            layer => return self.layer(layer, theirs),
        };
        self.out.insert(theirs.into(), tensor);
    }

    fn block(&mut self, from: &str, part: &str, theirs: &str) {
        match part {
            _ if is_tensor(part) => {
                let tensor = self.get(&format!("{from}.{part}"));
                self.out.insert(theirs.into(), tensor);
            }
            "gate_up" => {
                for end in ["weight", "bias"] {
                    let both = self.stacked(&["gate", "up"].map(|part| format!("{from}.{part}.{end}")));
                    self.out.insert(format!("{theirs}.{end}"), both);
                }
            }
            _ => self.layer(&format!("{from}.{part}"), theirs),
        }
        if part == "k" && self.backbone.arch.family == Family::Dinov3 {
            self.out.remove(&format!("{theirs}.bias"));
        }
    }
}
