//! What the public implementations call the layers that LoRA adapts.

use std::collections::BTreeMap;

use super::layout::{ALL, Layout, Part};
use super::load::theirs;
use super::{Arch, Body, Family, Naming};

/// The adapted layers in one naming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modules {
    /// `hugging-face`, `hugging-face-newer` (transformers 5), `timm` or `original`.
    pub naming: &'static str,
    /// Paths of modules by the name of their factors: `patch`, `blocks.N.o`, and `blocks.N.qkv` or `blocks.N.{q,k,v}`.
    pub paths: BTreeMap<String, String>,
}

/// Every naming of a backbone of this shape, the older ones first.
pub fn modules(arch: &Arch) -> Vec<Modules> {
    let mut all: Vec<Modules> = Vec::new();
    for layout in ALL.into_iter().filter(|layout| layout.family == arch.family) {
        for way in 0..layout.blocks[0].attention.len() {
            let naming = match layout.naming {
                Naming::Original => "original",
                Naming::Timm => "timm",
                Naming::HuggingFace | Naming::Onnx => "hugging-face",
            };
            let newer = all.iter().any(|other| other.naming == naming);
            let naming = if newer { "hugging-face-newer" } else { naming };
            all.push(Modules { naming, paths: paths(arch, layout, way) });
        }
    }
    if arch.family == Family::Siglip {
        // Until transformers 5 also the model without the text tower has the prefix of the one with it.
        let newer = all.remove(0);
        let paths = newer.paths.iter().map(|(name, path)| (name.clone(), format!("vision_model.{path}")));
        let older = Modules { naming: newer.naming, paths: paths.collect() };
        all = vec![older, Modules { naming: "hugging-face-newer", ..newer }];
    }
    all
}

fn paths(arch: &Arch, layout: &Layout, way: usize) -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    if let Some(patch) = theirs(layout.root, "patch").filter(|_| arch.adapts_patches()) {
        paths.insert("patch".to_owned(), patch.to_owned());
    }
    let mut number = 0;
    let mut put = |kind: usize, numbers: &[usize]| {
        let block = &layout.blocks[kind];
        let at = numbers.iter().fold(block.at.to_owned(), |at, n| at.replacen('N', &n.to_string(), 1));
        let parts: Vec<Part> = [block.parts, block.attention[way]].concat();
        for part in ["qkv", "q", "k", "v", "o"] {
            if let Some(theirs) = theirs(&parts, part) {
                paths.insert(format!("blocks.{number}.{part}"), format!("{at}.{theirs}"));
            }
        }
        number += 1;
    };
    match &arch.body {
        Body::Vit(vit) => (0..vit.depth).for_each(|n| put(0, &[n])),
        Body::Davit(davit) => {
            for (s, stage) in davit.stages.iter().enumerate() {
                for b in 0..2 * stage.depth {
                    put(b % 2, &[s, b / 2]);
                }
            }
        }
    }
    paths
}
