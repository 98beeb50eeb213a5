//! A frozen backbone, whatever family it is of and whatever naming its file came in.
//!
//! [`Backbone::open`] takes safetensors in the original, Hugging Face or timm naming, in one file or in shards with an index,
//! or the ONNX file of a published DINOv2, and yields one canonical set of tensors.
//!
//! A vision transformer (`d` width, `h` hidden, `p` patch, `g` native grid):
//!
//! | name | shape |
//! | --- | --- |
//! | `cls`, `position.cls` (where there are any) | `[d]` |
//! | `registers` (where there are any) | `[n, d]` |
//! | `position.patch` (where there is a table) | `[g * g, d]` |
//! | `patch.weight`, `patch.bias` | `[d, 3, p, p]`, `[d]` |
//! | `blocks.N.{norm1,norm2}.{weight,bias}` | `[d]` |
//! | `blocks.N.{scale1,scale2}` (where there is LayerScale) | `[d]` |
//! | `blocks.N.{q,k,v,o}.weight`, `.bias` | `[d, d]` (out, in), `[d]` |
//! | `blocks.N.{fc1,fc2}.weight`, `.bias` | `[h, d]`, `[d, h]` |
//! | `blocks.N.{gate,up,down}.weight`, `.bias` (SwiGLU, instead of fc1 and fc2) | `[h, d]`, `[h, d]`, `[d, h]` |
//! | `norm.weight`, `norm.bias` | `[d]` |
//! | `pool.probe`, `pool.{q,k,v,o,norm,fc1,fc2}.{weight,bias}` (pooling head) | as in a block |
//!
//! A bias that a family does not have, or masks, is zero: the key's of DINOv3.
//!
//! A DaViT, whose blocks are counted through all stages, window blocks even, channel blocks odd (`d` the stage's width):
//!
//! | name | shape |
//! | --- | --- |
//! | `embed.S.weight`, `.bias`; `embed.S.norm.{weight,bias}` | `[d, from, k, k]`, `[d]`; `[d]` in stage 0, `[from]` later |
//! | `blocks.N.{conv1,conv2}.weight`, `.bias` | `[d, 1, 3, 3]`, `[d]` |
//! | `blocks.N.{norm1,norm2,q,k,v,o,fc1,fc2}.{weight,bias}` | as above |
//! | `norm.weight`, `norm.bias` (where there is a final norm) | `[d]` |

mod arch;
mod config;
mod davit;
mod detect;
mod error;
mod layout;
mod load;
mod modules;
mod onnx;
mod position;
mod rope;
mod save;
mod shards;
#[cfg(test)]
mod tests;
mod vit;

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::arch::{Arch, Body, Davit, Embedding, Family, Mlp, Position, PositionResize, Stage, Vit};
pub use self::error::BackboneError;
pub use self::modules::{Modules, modules};
pub use self::rope::Rope;
use self::shards::Files;
pub use crate::tensor::{Tensor, Tensors};
use crate::tensor::{TensorError, hex, safetensors_bytes};

/// A frozen backbone.
#[derive(Debug, Clone)]
pub struct Backbone {
    /// Its sizes and parts.
    pub arch: Arch,
    /// The naming that the file came in.
    pub naming: Naming,
    /// SHA-256 of the file as it is on disk. Of a backbone in shards, that of what `sha256sum` prints of them, sorted by name
    /// (`sha256sum model-*.safetensors | sha256sum`): a digest, two spaces, the file's name and a newline for each.
    pub sha256: String,
    /// Canonical tensors; see the module's tables.
    pub tensors: Tensors,
    /// What the file calls itself (`__metadata__.name`).
    pub label: Option<String>,
}

/// The naming that a backbone file came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Naming {
    /// The original repository's `state_dict`.
    Original,
    /// Hugging Face transformers.
    HuggingFace,
    /// timm.
    Timm,
    /// Initialisers of an ONNX file exported from Hugging Face transformers.
    Onnx,
}

impl std::fmt::Display for Naming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Original => "original",
            Self::HuggingFace => "Hugging Face",
            Self::Timm => "timm",
            Self::Onnx => "ONNX (Hugging Face names)",
        })
    }
}

impl Backbone {
    /// Reads a backbone: safetensors in any of the namings; the index of a sharded one, or the folder with it; or the packaged
    /// ONNX file.
    ///
    /// A `config.json` in the same folder, where there is one, tells what the tensors do not: the number of heads, the
    /// epsilon of the norms, a DaViT's groups and window. Without it, they are those of the published models.
    pub fn open(path: &Path) -> Result<Self, BackboneError> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            let (tensors, sha256) = onnx::read(path)?;
            return load::canonical(tensors, Some(Naming::Onnx), sha256, None, path);
        }
        let Files { path, tensors, sha256, label } = shards::read(path)?;
        load::canonical(tensors, None, sha256, label, &path)
    }

    /// [`Self::sha256`] of the backbone at `path`; a single file's tensors are not looked at.
    pub fn digest(path: &Path) -> Result<String, BackboneError> {
        if path.is_dir() || shards::is_index(path) {
            return Self::open(path).map(|backbone| backbone.sha256);
        }
        let io = |source| TensorError::Io { path: path.into(), source };
        let (mut file, mut sha) = (std::fs::File::open(path).map_err(io)?, Sha256::new());
        let mut piece = vec![0; 1 << 16];
        loop {
            match file.read(&mut piece).map_err(io)? {
                0 => return Ok(hex(sha)),
                n => sha.update(&piece[..n]),
            }
        }
    }

    /// Keeps the first `blocks` blocks and the final norm.
    pub fn truncate(&mut self, blocks: usize) -> Result<(), BackboneError> {
        let depth = self.arch.depth();
        if blocks == 0 || blocks > depth {
            return Err(BackboneError::Blocks { asked: blocks, depth });
        }
        match &mut self.arch.body {
            Body::Vit(vit) => vit.depth = blocks,
            Body::Davit(_) if blocks < depth => return Err(BackboneError::Stages { asked: blocks }),
            Body::Davit(_) => (),
        }
        let dropped = |name: &str| {
            let index = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next());
            index.and_then(|n| n.parse().ok()).is_some_and(|n: usize| n >= blocks)
        };
        self.tensors.retain(|name, _| !dropped(name));
        Ok(())
    }

    /// What is added to the tokens, row by row: CLS with its position, the registers as they are, the positions of the patches,
    /// for a grid of `[gh, gw]` patches: `[1 + registers + gh * gw, d]`. Without CLS there are no rows before the patches.
    /// `None` for a DaViT, which has no such table.
    pub fn token_table(&self, grid: [usize; 2]) -> Option<Tensor> {
        let Body::Vit(vit) = &self.arch.body else { return None };
        let d = self.arch.dim;
        let mut data = self.tensors.get("cls").map_or(vec![], |cls| cls.data.clone());
        if let Some(position) = self.tensors.get("position.cls") {
            data.iter_mut().zip(&position.data).for_each(|(c, p)| *c += p);
        }
        if let Some(registers) = self.tensors.get("registers") {
            data.extend(&registers.data);
        }
        match vit.position {
            Position::Table { grid: native, resize } => {
                data.extend(position::resize(self.tensor("position.patch"), native, grid, resize).data);
            }
            Position::Rope { .. } => data.resize(data.len() + grid[0] * grid[1] * d, 0.0),
        }
        Some(Tensor::new([data.len() / d, d], data))
    }

    /// The rotations of queries and keys for a grid of `[gh, gw]` patches, where the backbone has them.
    pub fn rope(&self, grid: [usize; 2]) -> Option<Rope> {
        match &self.arch.body {
            Body::Vit(Vit { position: Position::Rope { theta }, heads, .. }) => {
                Some(Rope::new(grid, self.arch.dim / heads, *theta))
            }
            _ => None,
        }
    }

    /// A canonical tensor.
    ///
    /// # Panics
    /// Where the name is none of the module's table: a loaded backbone holds them all.
    pub(crate) fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("a backbone has a tensor {name}"))
    }

    /// What people call it: what the file says of itself, or family, size and patch.
    pub fn name(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.arch.name())
    }

    /// The licence of the family's published weights.
    pub fn licence(&self) -> &'static str {
        self.arch.licence()
    }

    /// The bytes of a safetensors file with this backbone in Hugging Face naming; `name` is what it calls itself.
    /// `None` for what that naming cannot say: positions that are resized in another way, and DaViTs.
    pub fn to_hugging_face(&self, name: &str) -> Option<Vec<u8>> {
        Some(safetensors_bytes(&save::hugging_face(self)?, Some(("name", name))))
    }
}
