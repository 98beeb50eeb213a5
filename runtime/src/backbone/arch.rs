//! What a backbone is made of.

use serde::{Deserialize, Serialize};

/// Sizes and parts of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arch {
    /// Architecture family.
    pub family: Family,
    /// Width d of a slice embedding and of the patch tokens that leave the network.
    pub dim: usize,
    /// Pixels along a side of a cell of the token grid that leaves the network.
    pub patch: usize,
    /// Epsilon of every LayerNorm.
    pub norm_eps: f32,
    /// What lies between the pixels and the embedding.
    pub body: Body,
}

/// Architecture family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// DINOv2, with or without registers.
    Dinov2,
    /// DINOv3: rotary positions, four registers, no key bias.
    Dinov3,
    /// The plain vision transformer, DeiT among them.
    Vit,
    /// The image tower of SigLIP, such as MedSigLIP's.
    Siglip,
    /// DaViT, the image tower of Florence-2 and MedImageInsight.
    Davit,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dinov2 => "DINOv2",
            Self::Dinov3 => "DINOv3",
            Self::Vit => "ViT",
            Self::Siglip => "SigLIP",
            Self::Davit => "DaViT",
        })
    }
}

/// What lies between the pixels and the embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// Tokens of one width on one grid.
    Vit(Vit),
    /// Stages of growing width on shrinking grids.
    Davit(Davit),
}

/// A vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Vit {
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads a block.
    pub heads: usize,
    /// Whether there is a CLS token, which becomes the embedding, or a head that pools the patch tokens.
    pub embedding: Embedding,
    /// Register tokens between CLS and the patches.
    pub registers: usize,
    /// The feed-forward part of a block.
    pub mlp: Mlp,
    /// Whether each branch of a block ends in a LayerScale.
    pub layer_scale: bool,
    /// How tokens know where they are.
    pub position: Position,
}

/// Where a slice's embedding comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Embedding {
    /// The CLS token after the final norm.
    Cls,
    /// Attention of a learned probe over the patch tokens after the final norm, then an MLP as in the blocks.
    Pooled,
}

/// The feed-forward part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mlp {
    /// `fc2(gelu(fc1 x))` with the exact (erf) GELU.
    Gelu {
        /// Hidden width.
        hidden: usize,
    },
    /// `fc2(gelu(fc1 x))` with the GELU's tanh approximation.
    GeluTanh {
        /// Hidden width.
        hidden: usize,
    },
    /// `down(silu(gate x) * up x)`.
    SwiGlu {
        /// Hidden width.
        hidden: usize,
    },
}

impl Mlp {
    /// Hidden width.
    pub fn hidden(self) -> usize {
        match self {
            Self::Gelu { hidden } | Self::GeluTanh { hidden } | Self::SwiGlu { hidden } => hidden,
        }
    }
}

/// How tokens know where they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// A learned table, added to the tokens once.
    Table {
        /// Side of its grid, in patches.
        grid: usize,
        /// How it is brought to another grid.
        resize: PositionResize,
    },
    /// Queries and keys of the patches are rotated in every block.
    Rope {
        /// Base of the frequencies.
        theta: f32,
    },
}

/// How the position table is brought to another grid. Each public implementation has its own way, and a
/// backbone was trained or converted with one of them, so the variant goes with the naming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionResize {
    /// Bicubic (a = -0.75), target size given: Hugging Face without registers.
    Bicubic,
    /// Bicubic (a = -0.75), scale factor (n + 0.1) / g: DINOv2's original code without registers.
    BicubicOffset,
    /// Antialiased bicubic (a = -0.5), target size given: with registers, and timm.
    BicubicAntialias,
}

/// A DaViT: in each stage a strided convolution, then pairs of a window block and a channel block. Its blocks are counted
/// through all stages, the window blocks even, the channel blocks odd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Davit {
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// Side of an attention window, in tokens.
    pub window: usize,
    /// Whether the mean of the last stage's tokens is normalised.
    pub final_norm: bool,
}

/// A stage of a DaViT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Width of its tokens.
    pub dim: usize,
    /// Pairs of blocks.
    pub depth: usize,
    /// Heads of the attention among the tokens of a window.
    pub heads: usize,
    /// Groups of the attention among channels.
    pub groups: usize,
    /// Side of the embedding convolution's kernel; it is padded by half of that.
    pub kernel: usize,
    /// Stride of the embedding convolution.
    pub stride: usize,
    /// Hidden width of its MLPs.
    pub hidden: usize,
}

impl Arch {
    /// The width of each attention block, in the order in which tensors and factors count them.
    pub fn widths(&self) -> Vec<usize> {
        match &self.body {
            Body::Vit(vit) => vec![self.dim; vit.depth],
            Body::Davit(davit) => davit.stages.iter().flat_map(|s| vec![s.dim; 2 * s.depth]).collect(),
        }
    }

    /// Number of attention blocks.
    pub fn depth(&self) -> usize {
        match &self.body {
            Body::Vit(vit) => vit.depth,
            Body::Davit(davit) => davit.stages.iter().map(|s| 2 * s.depth).sum(),
        }
    }

    /// Whether LoRA adapts the patch embedding. A DaViT's overlapping convolutions, one a stage, stay as they are.
    pub fn adapts_patches(&self) -> bool {
        matches!(self.body, Body::Vit(_))
    }

    /// Rows and columns of the tokens that leave the network, for slices of `size` (height, width) pixels; `None` where such
    /// slices do not divide into patches.
    pub fn grid(&self, size: [usize; 2]) -> Option<[usize; 2]> {
        let fits = |n: usize| n > 0 && (matches!(self.body, Body::Davit(_)) || n.is_multiple_of(self.patch));
        // A padded convolution of stride s leaves ⌈n / s⌉ of n, and ⌈⌈n / a⌉ / b⌉ = ⌈n / ab⌉.
        size.into_iter().all(fits).then(|| size.map(|n| n.div_ceil(self.patch)))
    }

    /// What a plugin's heat map is on this backbone, as its manifest says it.
    pub fn heatmap(&self) -> &'static str {
        match &self.body {
            Body::Vit(Vit { embedding: Embedding::Cls, .. }) => "cls-attention",
            Body::Vit(Vit { embedding: Embedding::Pooled, .. }) => "pool-attention",
            Body::Davit(_) => "pooled-similarity",
        }
    }

    /// The family and size as people write them, for example `DINOv2 ViT-S/14 with registers`.
    pub fn name(&self) -> String {
        let (family, patch) = (self.family, self.patch);
        match &self.body {
            Body::Davit(davit) => match davit.stages[0].dim {
                128 => format!("{family}-B"),
                256 => format!("{family}-H"),
                _ => family.to_string(),
            },
            Body::Vit(vit) => {
                let size = match (self.dim, vit.mlp) {
                    (192, _) => "ViT-Ti",
                    (384, Mlp::SwiGlu { .. }) => "ViT-S+",
                    (384, _) => "ViT-S",
                    (768, _) => "ViT-B",
                    (1024, _) => "ViT-L",
                    (1152, _) => "SO400M",
                    (1280, Mlp::SwiGlu { .. }) => "ViT-H+",
                    (1280, _) => "ViT-H",
                    (1536, _) => "ViT-g",
                    _ => "ViT",
                };
                match family {
                    Family::Vit => format!("{size}/{patch}"),
                    Family::Siglip if self.is_medsiglip() => format!("MedSigLIP {size}/{patch}"),
                    // Every DINOv3 has registers.
                    Family::Dinov2 if vit.registers > 0 => format!("{family} {size}/{patch} with registers"),
                    _ => format!("{family} {size}/{patch}"),
                }
            }
        }
    }

    /// The licence of the family's published weights.
    pub fn licence(&self) -> &'static str {
        match self.family {
            Family::Dinov3 => "DINOv3 License",
            Family::Siglip if self.is_medsiglip() => "Health AI Developer Foundations terms of use",
            Family::Dinov2 | Family::Vit | Family::Siglip => "Apache-2.0",
            Family::Davit => "MIT",
        }
    }

    /// Of the SigLIP towers of this size, MedSigLIP's alone takes 448 pixels.
    fn is_medsiglip(&self) -> bool {
        let table = |position| matches!(position, Position::Table { grid: 32, .. });
        self.family == Family::Siglip
            && self.dim == 1152
            && matches!(&self.body, Body::Vit(vit) if table(vit.position))
    }
}
