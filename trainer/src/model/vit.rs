use runtime::backbone::{Body, Embedding};
use tch::{Kind, TchError, Tensor};

use super::encoder::{Encoding, Loader};
use super::layers::{Linear, Mlp, Norm, Weight, heads, probabilities};
use super::parameters::{BlockFactors, Factors};
use super::pooling_head::PoolingHead;
use super::rotation::Rotation;

/// A frozen vision transformer.
pub(super) struct VisionTransformer {
    sizes: Sizes,
    /// `[3 p p]` pixels a patch → `[d]`.
    patch: Linear,
    /// One a size of slices.
    grids: Vec<Grid>,
    blocks: Vec<Block>,
    norm: Norm,
    pooling: Option<PoolingHead>,
}

/// Where the tokens of slices of one size are.
struct Grid {
    /// Rows and columns of patches.
    patches: [i64; 2],
    /// What is added to the patch tokens, `[N, d]`.
    positions: Tensor,
    /// `[1 + registers, d]`: CLS with its position, then the registers; none without CLS.
    prefix: Option<Tensor>,
    rotation: Option<Rotation>,
}

/// What the layers of a vision transformer have to know.
#[derive(Clone, Copy)]
struct Sizes {
    dim: i64,
    patch: i64,
    heads: i64,
    eps: f32,
}

struct Block {
    norm1: Norm,
    /// Query, key and value stacked, `[3 d, d]`.
    qkv: Linear,
    o: Linear,
    scale1: Option<Tensor>,
    norm2: Norm,
    mlp: Mlp,
    scale2: Option<Tensor>,
}

impl VisionTransformer {
    pub(super) fn new(loader: &Loader<'_>, grid: [usize; 2]) -> Result<Self, TchError> {
        let arch = &loader.backbone.arch;
        let Body::Vit(vit) = &arch.body else {
            return Err(TchError::Convert("the backbone is no vision transformer".into()));
        };
        let blocks = (0..vit.depth)
            .map(|n| {
                let of = |part: &str| format!("blocks.{n}.{part}");
                Ok(Block {
                    norm1: loader.norm(&of("norm1"))?,
                    qkv: loader.qkv(&format!("blocks.{n}"))?,
                    o: loader.linear(&of("o"))?,
                    scale1: loader.optional(&of("scale1"))?,
                    norm2: loader.norm(&of("norm2"))?,
                    mlp: loader.mlp(&format!("blocks.{n}"), vit.mlp)?,
                    scale2: loader.optional(&of("scale2"))?,
                })
            })
            .collect::<Result<_, TchError>>()?;
        let patch = loader.linear("patch")?;
        let sizes = Sizes {
            dim: arch.dim as i64,
            patch: arch.patch as i64,
            heads: vit.heads as i64,
            eps: arch.norm_eps,
        };
        let pools = vit.embedding == Embedding::Pooled;
        Ok(Self {
            sizes,
            patch: Linear { weight: patch.weight.f_flatten(1, -1)?, bias: patch.bias },
            grids: vec![Grid::new(loader, grid)?],
            blocks,
            norm: loader.norm("norm")?,
            pooling: if pools { Some(PoolingHead::new(loader, vit, arch.norm_eps)?) } else { None },
        })
    }

    /// Takes slices of this many patches too.
    pub(super) fn add_grid(&mut self, loader: &Loader<'_>, grid: [usize; 2]) -> Result<(), TchError> {
        if self.grids.iter().all(|known| known.patches != grid.map(|n| n as i64)) {
            self.grids.push(Grid::new(loader, grid)?);
        }
        Ok(())
    }

    pub(super) fn set_precision(&mut self, kind: Kind) -> Result<(), TchError> {
        self.patch = self.patch.to_kind(kind)?;
        for block in &mut self.blocks {
            block.qkv = block.qkv.to_kind(kind)?;
            block.o = block.o.to_kind(kind)?;
            block.mlp = block.mlp.to_kind(kind)?;
        }
        Ok(())
    }

    /// All weights by name; `None` where a pooling head takes the place of CLS.
    pub(super) fn weights(&mut self) -> Option<Vec<Weight<'_>>> {
        if self.pooling.is_some() {
            return None;
        }
        let mut all: Vec<Weight<'_>> = self.patch.weights("patch").into();
        for (n, grid) in self.grids.iter_mut().enumerate() {
            // With rotations the table of positions is zero, and no part of the backbone.
            let table = if grid.rotation.is_none() { Some(&mut grid.positions) } else { None };
            all.extend(table.map(|table| (format!("grids.{n}.positions"), table)));
            all.extend(grid.prefix.as_mut().map(|prefix| (format!("grids.{n}.prefix"), prefix)));
        }
        for (n, block) in self.blocks.iter_mut().enumerate() {
            all.extend(block.weights(&format!("blocks.{n}")));
        }
        all.extend(self.norm.weights("norm"));
        Some(all)
    }

    pub(super) fn share(&self) -> Self {
        Self {
            sizes: self.sizes,
            patch: self.patch.share(),
            grids: self.grids.iter().map(Grid::share).collect(),
            blocks: self.blocks.iter().map(Block::share).collect(),
            norm: self.norm.share(),
            pooling: self.pooling.as_ref().map(PoolingHead::share),
        }
    }

    pub(super) fn encode(
        &self,
        slices: &Tensor,
        factors: Option<&Factors>,
        patches: bool,
    ) -> Result<Encoding, TchError> {
        let s = slices.size()[0];
        let grid = self.grid(slices)?;
        let mut x = self.embed(slices, grid, factors)?;
        let tokens = x.size()[0] / s;
        let skipped = grid.prefix.as_ref().map_or(0, |prefix| prefix.size()[0]);
        let run = Run { s, sizes: &self.sizes, rotation: grid.rotation.as_ref() };
        let mut attention = None;
        for (n, block) in self.blocks.iter().enumerate() {
            let factors = factors.map(|f| &f.blocks[n]);
            let last = n + 1 == self.blocks.len() && self.pooling.is_none();
            if last && !patches {
                let (cls, row) = block.cls_only(&x, &run, factors)?;
                x = cls;
                attention = Some(row);
            } else {
                let (all, row) = block.forward(&x, &run, factors, last)?;
                x = all;
                attention = row;
            }
        }
        let x = self.norm.apply(&x, self.sizes.eps)?;
        if let Some(head) = &self.pooling {
            let (cls, cls_attention) = head.apply(&x, s)?;
            let patch = if patches { Some(x.f_view((s, tokens, -1))?) } else { None };
            return Ok(Encoding { cls, patch, cls_attention });
        }
        let row = attention.ok_or_else(|| TchError::Convert("the backbone has no blocks".into()))?;
        let cls_attention =
            row.f_narrow(-1, skipped, tokens - skipped)?.f_mean_dim(1i64, false, None)?.f_squeeze_dim(1)?;
        let (cls, patch) = if patches {
            let x = x.f_view((s, tokens, -1))?;
            (x.f_select(1, 0)?, Some(x.f_narrow(1, skipped, tokens - skipped)?))
        } else {
            (x, None)
        };
        Ok(Encoding { cls, patch, cls_attention })
    }

    /// The grid of slices `[S, 3, H, W]`.
    fn grid(&self, slices: &Tensor) -> Result<&Grid, TchError> {
        let (_, _, h, w) = slices.size4()?;
        let patches = [h / self.sizes.patch, w / self.sizes.patch];
        let known = self.grids.iter().find(|grid| grid.patches == patches);
        known
            .ok_or_else(|| TchError::Convert(format!("the encoder was not told of slices of {h}x{w} pixels")))
    }

    /// Tokens `[S T, d]` before the first block.
    fn embed(&self, slices: &Tensor, grid: &Grid, factors: Option<&Factors>) -> Result<Tensor, TchError> {
        let s = slices.size()[0];
        let Sizes { dim: d, patch: p, .. } = self.sizes;
        let [gh, gw] = grid.patches;
        // A convolution whose stride is its kernel is a linear map of each patch's pixels.
        let pixels = slices
            .f_reshape([s, 3, gh, p, gw, p])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([s * gh * gw, 3 * p * p])?;
        let pair = factors.and_then(|f| f.patch.as_ref());
        let patches = self.patch.adapted(&pixels, pair)?;
        let patches =
            patches.f_view((s, gh * gw, d))?.f_to_kind(grid.positions.kind())?.f_add(&grid.positions)?;
        let Some(prefix) = &grid.prefix else { return patches.f_reshape([-1, d]) };
        let prefix = prefix.f_unsqueeze(0)?.f_expand([s, -1, -1], false)?;
        Tensor::f_cat(&[prefix, patches], 1)?.f_reshape([-1, d])
    }
}

impl Grid {
    fn new(loader: &Loader<'_>, grid: [usize; 2]) -> Result<Self, TchError> {
        let table = loader.backbone.token_table(grid);
        let table =
            loader.load(&table.ok_or_else(|| TchError::Convert("the backbone has no table".into()))?)?;
        let count = (grid[0] * grid[1]) as i64;
        let before = table.size()[0] - count;
        let rope = loader.backbone.rope(grid);
        Ok(Self {
            patches: grid.map(|n| n as i64),
            positions: table.f_narrow(0, before, count)?,
            prefix: if before > 0 { Some(table.f_narrow(0, 0, before)?) } else { None },
            rotation: rope.map(|rope| Rotation::new(loader, &rope, before)).transpose()?,
        })
    }

    fn share(&self) -> Self {
        Self {
            patches: self.patches,
            positions: self.positions.shallow_clone(),
            prefix: self.prefix.as_ref().map(Tensor::shallow_clone),
            rotation: self.rotation.as_ref().map(Rotation::share),
        }
    }
}

impl Block {
    fn weights(&mut self, name: &str) -> Vec<Weight<'_>> {
        let of = |part: &str| format!("{name}.{part}");
        let mut all: Vec<Weight<'_>> = self.norm1.weights(&of("norm1")).into();
        all.extend(self.qkv.weights(&of("qkv")));
        all.extend(self.o.weights(&of("o")));
        all.extend(self.scale1.as_mut().map(|scale| (of("scale1"), scale)));
        all.extend(self.norm2.weights(&of("norm2")));
        all.extend(self.mlp.weights(name));
        all.extend(self.scale2.as_mut().map(|scale| (of("scale2"), scale)));
        all
    }

    fn share(&self) -> Self {
        Self {
            norm1: self.norm1.share(),
            qkv: self.qkv.share(),
            o: self.o.share(),
            scale1: self.scale1.as_ref().map(Tensor::shallow_clone),
            norm2: self.norm2.share(),
            mlp: self.mlp.share(),
            scale2: self.scale2.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// All tokens `[S T, d]`; with `attend` also the CLS rows of the attention, `[S, heads, 1, T]`.
    fn forward(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        factors: Option<&BlockFactors>,
        attend: bool,
    ) -> Result<(Tensor, Option<Tensor>), TchError> {
        let normed = self.norm1.apply(x, run.sizes.eps)?;
        let qkv = self.qkv.adapted(&normed, factors.map(|f| &f.qkv))?;
        let [q, k, v] = heads(&qkv, run.s, run.sizes.heads)?;
        let (q, k) = (run.rotated(q)?, run.rotated(k)?);
        let mixed =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false)?;
        let row = if attend { Some(probabilities(&q.f_narrow(2, 0, 1)?, &k)?) } else { None };
        Ok((self.finish(x, &mixed, run, factors)?, row))
    }

    /// The block's output for the CLS tokens alone, `[S, d]`, and their attention rows, `[S, heads, 1, T]`: keys and
    /// values of all tokens, but query, output projection and MLP of CLS, whose query is not rotated.
    fn cls_only(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        factors: Option<&BlockFactors>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let normed = self.norm1.apply(x, run.sizes.eps)?;
        let (s, d) = (run.s, run.sizes.dim);
        let first = |x: &Tensor| x.f_view((s, -1, d))?.f_select(1, 0);
        let pair = factors.map(|f| &f.qkv);
        let q = self.qkv.adapted_rows(&first(&normed)?, (0, d), pair)?;
        let [q] = heads(&q, s, run.sizes.heads)?;
        let kv = self.qkv.adapted_rows(&normed, (d, 2 * d), pair)?;
        let [k, v] = heads(&kv, s, run.sizes.heads)?;
        let row = probabilities(&q, &run.rotated(k)?)?;
        let mixed = row.f_to_kind(v.kind())?.f_matmul(&v)?;
        Ok((self.finish(&first(x)?, &mixed, run, factors)?, row))
    }

    /// Output projection, LayerScale, residual and MLP: `mixed` is `[S, heads, T', d / heads]`, `x` `[S T', d]`.
    fn finish(
        &self,
        x: &Tensor,
        mixed: &Tensor,
        run: &Run<'_>,
        factors: Option<&BlockFactors>,
    ) -> Result<Tensor, TchError> {
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([-1, run.sizes.dim])?;
        let out = self.o.adapted(&mixed, factors.map(|f| &f.o))?;
        let x = added(x, &out, self.scale1.as_ref())?;
        let out = self.mlp.apply(&self.norm2.apply(&x, run.sizes.eps)?)?;
        added(&x, &out, self.scale2.as_ref())
    }
}

/// What the blocks of one call have in common.
struct Run<'a> {
    /// Slices.
    s: i64,
    sizes: &'a Sizes,
    rotation: Option<&'a Rotation>,
}

impl Run<'_> {
    /// Queries or keys `[S, heads, T, e]` with their positions, where these are rotations.
    fn rotated(&self, x: Tensor) -> Result<Tensor, TchError> {
        match self.rotation {
            Some(rotation) => rotation.apply(&x),
            None => Ok(x),
        }
    }
}

/// A branch added to the stream, after its LayerScale where it has one. The sum is in the stream's precision.
fn added(x: &Tensor, branch: &Tensor, scale: Option<&Tensor>) -> Result<Tensor, TchError> {
    scale.map_or_else(|| x.f_add(branch), |scale| x.f_addcmul(branch, scale))
}
