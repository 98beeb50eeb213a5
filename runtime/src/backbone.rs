//! A frozen vision transformer of the DINOv2 family, whatever naming its file came in.
//!
//! [`Backbone::open`] takes safetensors in the original, Hugging Face or timm naming, or the ONNX file of a
//! published model, and yields one canonical set of tensors (`d` width, `h` hidden, `p` patch, `g` native grid):
//!
//! | name | shape |
//! | --- | --- |
//! | `cls`, `position.cls` | `[d]` |
//! | `registers` (where there are any) | `[n, d]` |
//! | `position.patch` | `[g * g, d]` |
//! | `patch.weight`, `patch.bias` | `[d, 3, p, p]`, `[d]` |
//! | `blocks.N.{norm1,norm2}.{weight,bias}`, `blocks.N.{scale1,scale2}` | `[d]` |
//! | `blocks.N.{q,k,v,o}.weight`, `.bias` | `[d, d]` (out, in), `[d]` |
//! | `blocks.N.{fc1,fc2}.weight`, `.bias` | `[h, d]`, `[d, h]` |
//! | `blocks.N.{gate,up,down}.weight`, `.bias` (SwiGLU, instead of fc1 and fc2) | `[h, d]`, `[h, d]`, `[d, h]` |
//! | `norm.weight`, `norm.bias` | `[d]` |

mod naming;
mod onnx;
mod position;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use crate::tensor::{Tensor, Tensors};
use crate::tensor::{TensorError, read_safetensors, safetensors_bytes};

/// A frozen backbone.
#[derive(Debug, Clone)]
pub struct Backbone {
    /// Its sizes.
    pub arch: Arch,
    /// The naming that the file came in.
    pub naming: Naming,
    /// SHA-256 of the file as it is on disk.
    pub sha256: String,
    /// Canonical tensors; see the module's table.
    pub tensors: Tensors,
    /// What the file calls itself (`__metadata__.name`).
    pub label: Option<String>,
}

/// Sizes of a vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Arch {
    /// Architecture family.
    pub family: Family,
    /// Width d of the token stream.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads a block.
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Side of the position table's grid, in patches.
    pub native_grid: usize,
    /// Register tokens between CLS and the patches.
    pub registers: usize,
    /// The feed-forward part of a block.
    pub mlp: Mlp,
    /// Epsilon of every LayerNorm.
    pub norm_eps: f32,
    /// How the position table is brought to another grid.
    pub resize: PositionResize,
}

/// Architecture family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// DINOv2, with or without registers.
    Dinov2,
}

/// The feed-forward part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mlp {
    /// `fc2(gelu(fc1 x))` with the exact (erf) GELU.
    Gelu {
        /// Hidden width.
        hidden: usize,
    },
    /// `down(silu(gate x) * up x)`.
    SwiGlu {
        /// Hidden width.
        hidden: usize,
    },
}

/// How the position table is brought to another grid. Each public implementation has its own way, and a
/// backbone was trained or converted with one of them, so the variant goes with the naming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionResize {
    /// Bicubic (a = -0.75), target size given: Hugging Face without registers.
    Bicubic,
    /// Bicubic (a = -0.75), scale factor (n + 0.1) / g: the original code without registers.
    BicubicOffset,
    /// Antialiased bicubic (a = -0.5), target size given: with registers, and timm.
    BicubicAntialias,
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

/// Why a backbone could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The file could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The names belong to no known family.
    #[error(
        "{path} holds no DINOv2 backbone in the original, Hugging Face or timm naming ({detail}); \
         give a file that holds one", path = path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        detail: String,
    },
    /// Some tensors of the family are not there.
    #[error(
        "{path} lacks {count} tensors of a {naming} DINOv2 backbone, the first being {first}; \
         fetch the whole file", path = path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The naming found.
        naming: Naming,
        /// How many are missing.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A tensor has another shape than the rest implies.
    #[error("{path}: tensor {name} has shape {found:?}, expected {expected:?}; the file mixes models", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the other tensors imply.
        expected: Vec<usize>,
    },
    /// The number of heads cannot be told from the file.
    #[error(
        "{path}: the number of attention heads of a {dim}-wide backbone cannot be told from its tensors; \
         put the model's config.json with num_attention_heads beside it", path = path.display()
    )]
    Heads {
        /// The file.
        path: PathBuf,
        /// The width.
        dim: usize,
    },
    /// `config.json` beside the file cannot be used.
    #[error("{path}: {detail}; mend it or take it away", path = path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// More blocks were asked for than there are.
    #[error("{asked} blocks were asked for, but the backbone has {depth}; ask for 1 to {depth}")]
    Blocks {
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        depth: usize,
    },
}

impl BackboneError {
    /// Whether the user's file or flag is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Tensor(e) => e.is_bad_input(),
            _ => true,
        }
    }
}

impl Backbone {
    /// Reads a backbone: safetensors in any of the three namings, or the packaged ONNX file.
    ///
    /// A `config.json` in the same folder, where there is one, tells the number of heads and the LayerNorm
    /// epsilon; without it, heads are 64 wide, as in every published DINOv2.
    pub fn open(path: &Path) -> Result<Self, BackboneError> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            let (tensors, sha256) = onnx::read(path)?;
            return naming::canonical(tensors, Some(Naming::Onnx), sha256, None, path);
        }
        let file = read_safetensors(path)?;
        let label = file.metadata.get("name").cloned();
        naming::canonical(file.tensors, None, file.sha256, label, path)
    }

    /// Keeps the first `blocks` blocks and the final norm.
    pub fn truncate(&mut self, blocks: usize) -> Result<(), BackboneError> {
        let depth = self.arch.depth;
        if blocks == 0 || blocks > depth {
            return Err(BackboneError::Blocks { asked: blocks, depth });
        }
        let dropped = |name: &str| {
            let index = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next());
            index.and_then(|n| n.parse().ok()).is_some_and(|n: usize| n >= blocks)
        };
        self.tensors.retain(|name, _| !dropped(name));
        self.arch.depth = blocks;
        Ok(())
    }

    /// The position table for a grid of `[gh, gw]` patches: `[gh * gw, d]`, row-major.
    pub fn positions(&self, grid: [usize; 2]) -> Tensor {
        position::resize(&self.tensors["position.patch"], self.arch.native_grid, grid, self.arch.resize)
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
        self.label.clone().unwrap_or_else(|| {
            let size = match self.arch.dim {
                384 => "ViT-S",
                768 => "ViT-B",
                1024 => "ViT-L",
                1536 => "ViT-g",
                _ => "ViT",
            };
            let registers = if self.arch.registers > 0 { " with registers" } else { "" };
            format!("DINOv2 {size}/{}{registers}", self.arch.patch)
        })
    }

    /// The licence of the family's published weights.
    pub fn licence(&self) -> &'static str {
        match self.arch.family {
            Family::Dinov2 => "Apache-2.0",
        }
    }

    /// The bytes of a safetensors file with this backbone in Hugging Face naming; `name` is what it calls itself.
    /// Only a backbone whose positions are resized as Hugging Face does can be written so.
    pub fn to_hugging_face(&self, name: &str) -> Option<Vec<u8>> {
        let resize = naming::resize(Naming::HuggingFace, self.arch.registers);
        let tensors = (self.arch.resize == resize).then(|| naming::to_hugging_face(self))?;
        Some(safetensors_bytes(&tensors, Some(("name", name))))
    }
}
