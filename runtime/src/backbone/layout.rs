//! What each public implementation calls the tensors of a family.

use super::{Family, Naming};

/// Our name and theirs: of a layer (`.weight` and `.bias` follow), or of one tensor where [`is_tensor`] says so.
pub(super) type Part = (&'static str, &'static str);

/// The names of one implementation. Every number in a name stands as `N`.
pub(super) struct Layout {
    pub family: Family,
    pub naming: Naming,
    /// Outside the blocks. `mask` and `periods` are used by nobody, but tell namings apart.
    pub root: &'static [Part],
    /// The same, of what may be absent.
    pub optional: &'static [Part],
    /// The kinds of block: one, or DaViT's window block and channel block.
    pub blocks: &'static [Block],
}

/// The names in a block.
pub(super) struct Block {
    /// What comes before all of them.
    pub at: &'static str,
    /// In each block.
    pub parts: &'static [Part],
    /// Query, key and value, in one of these ways.
    pub attention: &'static [&'static [Part]],
    /// The feed-forward part, in one of these ways.
    pub mlp: &'static [&'static [Part]],
}

/// Every layout that is known.
pub(super) const ALL: [&Layout; 13] = [
    &DINOV2_ORIGINAL,
    &DINOV2_TIMM,
    &DINOV2_HUGGING_FACE,
    &DINOV3_ORIGINAL,
    &DINOV3_TIMM,
    &DINOV3_HUGGING_FACE,
    &DINOV3_HUGGING_FACE_NEWER,
    &VIT_HUGGING_FACE,
    &VIT_TIMM,
    &SIGLIP_HUGGING_FACE,
    &DAVIT_TIMM,
    &DAVIT_HUGGING_FACE,
    &DAVIT_ORIGINAL,
];

/// Whether a canonical part is one tensor, not a layer with weight and bias.
pub(super) fn is_tensor(part: &str) -> bool {
    const TENSORS: [&str; 11] = [
        "cls",
        "registers",
        "distillation",
        "positions",
        "mask",
        "periods",
        "probe",
        "scale1",
        "scale2",
        "pool.in_weight",
        "pool.in_bias",
    ];
    TENSORS.contains(&part)
}

const FUSED: &[Part] = &[("qkv", "attn.qkv")];
const MLP: &[Part] = &[("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")];
const ORIGINAL_PARTS: &[Part] = &[
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("o", "attn.proj"),
    ("scale1", "ls1.gamma"),
    ("scale2", "ls2.gamma"),
];
const ORIGINAL_BLOCK: Block = Block {
    at: "blocks.N",
    parts: ORIGINAL_PARTS,
    attention: &[FUSED],
    mlp: &[MLP, &[("gate_up", "mlp.w12"), ("down", "mlp.w3")]],
};
const HUGGING_FACE_PARTS: &[Part] = &[
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("scale1", "layer_scale1.lambda1"),
    ("scale2", "layer_scale2.lambda1"),
];
const HUGGING_FACE_ATTENTION: &[Part] = &[
    ("q", "attention.attention.query"),
    ("k", "attention.attention.key"),
    ("v", "attention.attention.value"),
    ("o", "attention.output.dense"),
];
/// In newer releases.
const HUGGING_FACE_NEWER_ATTENTION: &[Part] = &[
    ("q", "attention.q_proj"),
    ("k", "attention.k_proj"),
    ("v", "attention.v_proj"),
    ("o", "attention.o_proj"),
];

const DINOV2_ORIGINAL: Layout = Layout {
    family: Family::Dinov2,
    naming: Naming::Original,
    root: &[
        ("cls", "cls_token"),
        ("positions", "pos_embed"),
        ("patch", "patch_embed.proj"),
        ("norm", "norm"),
        ("mask", "mask_token"),
    ],
    optional: &[("registers", "register_tokens")],
    blocks: &[ORIGINAL_BLOCK],
};

/// timm drops the mask token, which the original keeps.
const DINOV2_TIMM: Layout = Layout {
    family: Family::Dinov2,
    naming: Naming::Timm,
    root: VIT_TIMM.root,
    optional: &[("registers", "reg_token")],
    blocks: &[ORIGINAL_BLOCK],
};

const DINOV2_HUGGING_FACE: Layout = Layout {
    family: Family::Dinov2,
    naming: Naming::HuggingFace,
    root: VIT_HUGGING_FACE.root,
    optional: &[("registers", "embeddings.register_tokens"), ("mask", "embeddings.mask_token")],
    blocks: &[Block {
        at: "encoder.layer.N",
        parts: HUGGING_FACE_PARTS,
        attention: &[HUGGING_FACE_ATTENTION, HUGGING_FACE_NEWER_ATTENTION],
        mlp: &[MLP, &[("gate_up", "mlp.weights_in"), ("down", "mlp.weights_out")]],
    }],
};

const DINOV3_ORIGINAL: Layout = Layout {
    family: Family::Dinov3,
    naming: Naming::Original,
    root: &[
        ("cls", "cls_token"),
        ("registers", "storage_tokens"),
        ("patch", "patch_embed.proj"),
        ("norm", "norm"),
        ("mask", "mask_token"),
    ],
    // As RoPE's formula gives them.
    optional: &[("periods", "rope_embed.periods")],
    blocks: &[Block {
        mlp: &[MLP, &[("gate", "mlp.w1"), ("up", "mlp.w2"), ("down", "mlp.w3")]],
        ..ORIGINAL_BLOCK
    }],
};

/// The biases of query and value stand apart, or are left out where they are all zero.
const DINOV3_TIMM: Layout = Layout {
    family: Family::Dinov3,
    naming: Naming::Timm,
    root: &[
        ("cls", "cls_token"),
        ("registers", "reg_token"),
        ("patch", "patch_embed.proj"),
        ("norm", "norm"),
    ],
    optional: &[],
    blocks: &[Block {
        at: "blocks.N",
        parts: &[
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("o", "attn.proj"),
            ("scale1", "gamma_1"),
            ("scale2", "gamma_2"),
        ],
        attention: &[FUSED],
        mlp: &[MLP, &[("gate", "mlp.fc1_g"), ("up", "mlp.fc1_x"), ("down", "mlp.fc2")]],
    }],
};

const DINOV3_HUGGING_FACE: Layout = Layout {
    family: Family::Dinov3,
    naming: Naming::HuggingFace,
    root: &[
        ("cls", "embeddings.cls_token"),
        ("registers", "embeddings.register_tokens"),
        ("patch", "embeddings.patch_embeddings"),
        ("norm", "norm"),
    ],
    optional: &[("mask", "embeddings.mask_token")],
    blocks: &[DINOV3_HUGGING_FACE_BLOCK],
};

/// In newer releases the blocks alone are called `model.layer.N`.
const DINOV3_HUGGING_FACE_NEWER: Layout =
    Layout { blocks: &[Block { at: "model.layer.N", ..DINOV3_HUGGING_FACE_BLOCK }], ..DINOV3_HUGGING_FACE };

const DINOV3_HUGGING_FACE_BLOCK: Block = Block {
    at: "layer.N",
    parts: HUGGING_FACE_PARTS,
    attention: &[HUGGING_FACE_NEWER_ATTENTION],
    mlp: &[
        &[("fc1", "mlp.up_proj"), ("fc2", "mlp.down_proj")],
        &[("gate", "mlp.gate_proj"), ("up", "mlp.up_proj"), ("down", "mlp.down_proj")],
    ],
};

const VIT_HUGGING_FACE: Layout = Layout {
    family: Family::Vit,
    naming: Naming::HuggingFace,
    root: &[
        ("cls", "embeddings.cls_token"),
        ("positions", "embeddings.position_embeddings"),
        ("patch", "embeddings.patch_embeddings.projection"),
        ("norm", "layernorm"),
    ],
    optional: &[("distillation", "embeddings.distillation_token"), ("mask", "embeddings.mask_token")],
    blocks: &[Block {
        at: "encoder.layer.N",
        parts: &[("norm1", "layernorm_before"), ("norm2", "layernorm_after")],
        attention: &[HUGGING_FACE_ATTENTION, HUGGING_FACE_NEWER_ATTENTION],
        mlp: &[&[("fc1", "intermediate.dense"), ("fc2", "output.dense")], MLP],
    }],
};

/// DeiT's original code has the same names.
const VIT_TIMM: Layout = Layout {
    family: Family::Vit,
    naming: Naming::Timm,
    root: &[
        ("cls", "cls_token"),
        ("positions", "pos_embed"),
        ("patch", "patch_embed.proj"),
        ("norm", "norm"),
    ],
    optional: &[("distillation", "dist_token")],
    blocks: &[Block {
        at: "blocks.N",
        parts: &[("norm1", "norm1"), ("norm2", "norm2"), ("o", "attn.proj")],
        attention: &[FUSED],
        mlp: &[MLP],
    }],
};

const SIGLIP_HUGGING_FACE: Layout = Layout {
    family: Family::Siglip,
    naming: Naming::HuggingFace,
    root: &[
        ("positions", "embeddings.position_embedding.weight"),
        ("patch", "embeddings.patch_embedding"),
        ("norm", "post_layernorm"),
        ("probe", "head.probe"),
        ("pool.in_weight", "head.attention.in_proj_weight"),
        ("pool.in_bias", "head.attention.in_proj_bias"),
        ("pool.o", "head.attention.out_proj"),
        ("pool.norm", "head.layernorm"),
        ("pool.fc1", "head.mlp.fc1"),
        ("pool.fc2", "head.mlp.fc2"),
    ],
    optional: &[],
    blocks: &[Block {
        at: "encoder.layers.N",
        parts: &[("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("o", "self_attn.out_proj")],
        attention: &[&[("q", "self_attn.q_proj"), ("k", "self_attn.k_proj"), ("v", "self_attn.v_proj")]],
        mlp: &[MLP],
    }],
};

const DAVIT_TIMM: Layout = Layout {
    family: Family::Davit,
    naming: Naming::Timm,
    root: &[
        ("embed.0", "stem.conv"),
        ("embed.0.norm", "stem.norm"),
        ("embed.N", "stages.N.downsample.conv"),
        ("embed.N.norm", "stages.N.downsample.norm"),
    ],
    optional: &[("norm", "head.norm")],
    blocks: &[
        Block { at: "stages.N.blocks.N.spatial_block", ..DAVIT_TIMM_BLOCK },
        Block { at: "stages.N.blocks.N.channel_block", ..DAVIT_TIMM_BLOCK },
    ],
};
const DAVIT_TIMM_BLOCK: Block = Block {
    at: "",
    parts: &[
        ("conv1", "cpe1.proj"),
        ("conv2", "cpe2.proj"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
        ("o", "attn.proj"),
    ],
    attention: &[FUSED],
    mlp: &[MLP],
};

const DAVIT_HUGGING_FACE: Layout = Layout {
    family: Family::Davit,
    naming: Naming::HuggingFace,
    root: &[("embed.N", "convs.N.conv"), ("embed.N.norm", "convs.N.norm")],
    optional: &[],
    blocks: &[
        Block {
            at: "blocks.N.N.spatial_block",
            parts: &[("conv1", "conv1"), ("conv2", "conv2"), ("norm1", "norm1"), ("norm2", "norm2")],
            attention: &[&[("qkv", "window_attn.qkv"), ("o", "window_attn.proj")]],
            mlp: &[&[("fc1", "ffn.fc1"), ("fc2", "ffn.fc2")]],
        },
        Block {
            at: "blocks.N.N.channel_block",
            parts: &[("conv1", "conv1"), ("conv2", "conv2"), ("norm1", "norm1"), ("norm2", "norm2")],
            attention: &[&[("qkv", "channel_attn.qkv"), ("o", "channel_attn.proj")]],
            mlp: &[&[("fc1", "ffn.fc1"), ("fc2", "ffn.fc2")]],
        },
    ],
};

/// The code of Florence-2 and MedImageInsight.
const DAVIT_ORIGINAL: Layout = Layout {
    family: Family::Davit,
    naming: Naming::Original,
    root: &[("embed.N", "convs.N.proj"), ("embed.N.norm", "convs.N.norm")],
    optional: &[("norm", "norms")],
    blocks: &[
        Block {
            at: "blocks.N.N.spatial_block",
            parts: &[("conv1", "conv1.fn.dw"), ("conv2", "conv2.fn.dw"), ("norm2", "ffn.norm")],
            attention: &[&[
                ("norm1", "window_attn.norm"),
                ("qkv", "window_attn.fn.qkv"),
                ("o", "window_attn.fn.proj"),
            ]],
            mlp: &[&[("fc1", "ffn.fn.net.fc1"), ("fc2", "ffn.fn.net.fc2")]],
        },
        Block {
            at: "blocks.N.N.channel_block",
            parts: &[("conv1", "conv1.fn.dw"), ("conv2", "conv2.fn.dw"), ("norm2", "ffn.norm")],
            attention: &[&[
                ("norm1", "channel_attn.norm"),
                ("qkv", "channel_attn.fn.qkv"),
                ("o", "channel_attn.fn.proj"),
            ]],
            mlp: &[&[("fc1", "ffn.fn.net.fc1"), ("fc2", "ffn.fn.net.fc2")]],
        },
    ],
};
