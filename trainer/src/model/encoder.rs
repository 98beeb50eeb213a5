use runtime::backbone::{Arch, Backbone, Body as BodyKind, Mlp as MlpKind, Tensor as Stored};
use tch::{Device, Kind, TchError, Tensor};

use super::davit::Davit;
use super::layers::{Linear, Mlp, Norm};
use super::parameters::Factors;
use super::vit::VisionTransformer;
use crate::Error;

/// A frozen backbone, for slices of the sizes that it was told of; [`Encoder::trainable`] thaws it.
pub struct Encoder {
    arch: Arch,
    device: Device,
    /// Of the blocks' matrix products.
    kind: Kind,
    body: Body,
}

enum Body {
    Vit(Box<VisionTransformer>),
    Davit(Davit),
}

/// What the encoder makes of slices.
pub struct Encoding {
    /// The slice embedding, `[S, d]`: CLS after the final norm, or what the backbone pools.
    pub cls: Tensor,
    /// Patch tokens after the final norm (of a DaViT, before it), `[S, N, d]`, where asked for.
    pub patch: Option<Tensor>,
    /// Last block's attention from CLS to the patches, mean over heads, `[S, N]`; the columns of CLS and registers
    /// are dropped and the rest is not normalised again. On a backbone without CLS, the pooling head's attention or each
    /// token's share in the pooled embedding ([`Arch::heatmap`] says which).
    pub cls_attention: Tensor,
}

/// Puts a backbone's tensors on a device.
pub(super) struct Loader<'a> {
    pub(super) backbone: &'a Backbone,
    pub(super) device: Device,
}

impl Loader<'_> {
    pub(super) fn load(&self, stored: &Stored) -> Result<Tensor, TchError> {
        let dims: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
        Tensor::f_from_slice(&stored.data)?.f_reshape(dims)?.f_to_device(self.device)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, TchError> {
        let stored = self.backbone.tensors.get(name);
        self.load(stored.ok_or_else(|| TchError::Convert(format!("the backbone has no tensor {name}")))?)
    }

    /// A tensor that not every backbone has.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Tensor>, TchError> {
        self.backbone.tensors.get(name).map(|stored| self.load(stored)).transpose()
    }

    pub(super) fn linear(&self, name: &str) -> Result<Linear, TchError> {
        let part = |part| self.tensor(&format!("{name}.{part}"));
        Ok(Linear { weight: part("weight")?, bias: part("bias")? })
    }

    pub(super) fn norm(&self, name: &str) -> Result<Norm, TchError> {
        let part = |part| self.tensor(&format!("{name}.{part}"));
        Ok(Norm { weight: part("weight")?, bias: part("bias")? })
    }

    /// The projections to query, key and value stacked, `[3 d, d]`.
    pub(super) fn qkv(&self, block: &str) -> Result<Linear, TchError> {
        let linear = |part| self.linear(&format!("{block}.{part}"));
        let parts = [linear("q")?, linear("k")?, linear("v")?];
        Ok(Linear {
            weight: Tensor::f_cat(&parts.each_ref().map(|p| &p.weight), 0)?,
            bias: Tensor::f_cat(&parts.each_ref().map(|p| &p.bias), 0)?,
        })
    }

    pub(super) fn mlp(&self, block: &str, kind: MlpKind) -> Result<Mlp, TchError> {
        let linear = |part| self.linear(&format!("{block}.{part}"));
        Ok(match kind {
            MlpKind::Gelu { .. } => {
                Mlp::Gelu { fc1: linear("fc1")?, fc2: linear("fc2")?, approximate: "none" }
            }
            MlpKind::GeluTanh { .. } => {
                Mlp::Gelu { fc1: linear("fc1")?, fc2: linear("fc2")?, approximate: "tanh" }
            }
            MlpKind::SwiGlu { .. } => {
                Mlp::SwiGlu { gate: linear("gate")?, up: linear("up")?, down: linear("down")? }
            }
        })
    }
}

impl Encoder {
    /// Puts a backbone's weights on `device`, for slices of `size` (height, width), which must divide into patches.
    pub fn new(backbone: &Backbone, size: [usize; 2], device: Device) -> Result<Self, Error> {
        let arch = backbone.arch.clone();
        let loader = Loader { backbone, device };
        let grid = grid(&arch, size)?;
        let body = match &arch.body {
            BodyKind::Vit(_) => Body::Vit(Box::new(VisionTransformer::new(&loader, grid)?)),
            BodyKind::Davit(davit) => Body::Davit(Davit::new(&loader, davit)?),
        };
        Ok(Self { arch, device, kind: Kind::Float, body })
    }

    /// The same encoder, for slices of `size` too; its weights are held once.
    pub fn with_size(mut self, backbone: &Backbone, size: [usize; 2]) -> Result<Self, Error> {
        let grid = grid(&self.arch, size)?;
        if let Body::Vit(vit) = &mut self.body {
            vit.add_grid(&Loader { backbone, device: self.device }, grid)?;
        }
        Ok(self)
    }

    /// The same encoder with its blocks' matrix products and attention in `kind`, and those of a patch embedding: their weights
    /// are kept in it, and what they take is rounded to it. Norms, the residual stream, softmax of the CLS row, rotations, a
    /// pooling head, a DaViT's convolutions and the embeddings stay in f32, as do the LoRA factors, of which a rounded copy is
    /// used.
    pub fn with_precision(mut self, kind: Kind) -> Result<Self, TchError> {
        match &mut self.body {
            Body::Vit(vit) => vit.set_precision(kind)?,
            Body::Davit(davit) => davit.set_precision(kind)?,
        }
        self.kind = kind;
        Ok(self)
    }

    /// The same encoder with weights of its own that ask for gradients, to be fitted whole; and these weights by name, the same
    /// tensors. Positions are those of its sizes of slices, and what is stacked or added up for the encoder is one weight. Only of a
    /// vision transformer with CLS.
    pub(crate) fn trainable(mut self) -> Result<(Self, Vec<(String, Tensor)>), TchError> {
        let weights = match &mut self.body {
            Body::Vit(vit) => vit.weights(),
            Body::Davit(_) => None,
        };
        let Some(weights) = weights else {
            return Err(TchError::Convert(format!("{} has no CLS to be fitted whole by", self.arch.family)));
        };
        let mut named = Vec::with_capacity(weights.len());
        for (name, weight) in weights {
            *weight = weight.f_detach_copy()?.f_set_requires_grad(true)?;
            named.push((name, weight.shallow_clone()));
        }
        Ok((self, named))
    }

    /// The same weights for another thread; nothing is copied.
    #[must_use]
    pub fn share(&self) -> Self {
        let body = match &self.body {
            Body::Vit(vit) => Body::Vit(Box::new(vit.share())),
            Body::Davit(davit) => Body::Davit(davit.share()),
        };
        Self { arch: self.arch.clone(), device: self.device, kind: self.kind, body }
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The precision of the blocks' matrix products, in which they take the factors.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Slices that go through at a time where no activations are kept for a backward pass and `chunk` would go where they are.
    /// A GPU gets more, since a few are too little work for it, and they take a tenth of the memory each.
    pub fn forward_chunk(&self, chunk: usize) -> usize {
        if self.device == Device::Cpu { chunk } else { 4 * chunk }
    }

    /// The backbone's shape.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// Encodes slices `[S, 3, H, W]`, with LoRA where `factors` of this encoder's precision are given. Without `patches` the last block computes
    /// only what the embedding needs, which gives the same embedding.
    pub fn encode(
        &self,
        slices: &Tensor,
        factors: Option<&Factors>,
        patches: bool,
    ) -> Result<Encoding, TchError> {
        match &self.body {
            Body::Vit(vit) => vit.encode(slices, factors, patches),
            Body::Davit(davit) => davit.encode(slices, factors, patches),
        }
    }
}

fn grid(arch: &Arch, size: [usize; 2]) -> Result<[usize; 2], TchError> {
    let ([height, width], patch) = (size, arch.patch);
    arch.grid(size).ok_or_else(|| {
        TchError::Convert(format!("slices of {height}x{width} pixels do not divide into patches of {patch}"))
    })
}
