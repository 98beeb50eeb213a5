//! What a fit on the CPU is going to take, estimated before its first step, since there the system ends what takes too much
//! without a word.

use runtime::backbone::{Arch, Body, Embedding};

use crate::task::Train;

/// What a process was seen to take over what [`activations`] counts: peaks of a step on 2 to 24 slices, DINOv2 ViT-S/14 at 112
/// and 224 pixels, one thread. Beside the activations there are their gradients, and what the allocator cannot reuse.
const OVERHEAD: f64 = 1.5;

/// An estimate, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Needs {
    /// Activations of the slices that all workers have in the network at a time, and what pixel supervision holds of their
    /// volumes.
    pub activations: f64,
    /// Prepared slices that are kept.
    pub kept: f64,
    /// Prepared slices that wait, and those of a batch.
    pub ahead: f64,
}

/// What the estimate is made for.
#[derive(Debug, Clone, Copy)]
pub struct Fit<'a> {
    /// The backbone.
    pub arch: &'a Arch,
    /// Height and width of a slice.
    pub size: [usize; 2],
    /// Slices of a volume.
    pub slices: usize,
    /// Volumes of the table.
    pub volumes: usize,
    /// Volumes that are in the network at a time.
    pub workers: usize,
    /// Limits.
    pub train: &'a Train,
}

/// Bytes that the backward pass needs of one slice: for each token of width d and hidden width h in each block, the inputs of
/// both norms, the normed input of the adapted projection, query, key, value, and the attention's output as the kernel and
/// as the projection want it, together 8 d, and the input of the activation function, h.
fn activations(arch: &Arch, size: [usize; 2]) -> f64 {
    let floats: usize = match &arch.body {
        Body::Vit(vit) => {
            let [rows, columns] = arch.grid(size).unwrap_or([0; 2]);
            let cls = usize::from(vit.embedding == Embedding::Cls);
            (rows * columns + cls + vit.registers) * vit.depth * (8 * arch.dim + vit.mlp.hidden())
        }
        Body::Davit(davit) => {
            let mut grid = size;
            let stages = davit.stages.iter().map(|stage| {
                grid = grid.map(|n| n.div_ceil(stage.stride));
                grid[0] * grid[1] * 2 * stage.depth * (8 * stage.dim + stage.hidden)
            });
            stages.sum()
        }
    };
    floats as f64 * 4.0
}

/// Bytes that pixel supervision holds of one slice: its N patch tokens of width d and their gradient, five maps of the decoder's
/// width on the token grid, and eight of a quarter of the pixels (mask, logits, the losses' parts and gradients).
fn supervision(arch: &Arch, size: [usize; 2], width: usize) -> f64 {
    let [rows, columns] = arch.grid(size).unwrap_or([0; 2]);
    ((rows * columns * (2 * arch.dim + 5 * width) + 2 * size[0] * size[1]) * 4) as f64
}

impl Needs {
    /// For a fit of volumes that are all alike.
    pub fn of(fit: &Fit<'_>) -> Self {
        let Fit { arch, size, slices, volumes, workers, train } = *fit;
        // Volumes that fit together go through together, shared among the workers; a longer one goes in chunks.
        let batch = train.batch.min(volumes);
        let shared = (batch * slices).div_ceil(workers);
        let at_a_time = shared.max(slices).min(train.chunk);
        let volume = (slices * 3 * size[0] * size[1] * 4) as f64;
        let within = |limit_mb: usize, volumes: usize| (limit_mb as f64 * MIB).min(volumes as f64 * volume);
        // The decoder sees all slices of a volume, also of one that is encoded in chunks.
        let supervised =
            train.pixel.map_or(0.0, |pixel| slices as f64 * supervision(arch, size, pixel.width));
        let network = at_a_time as f64 * activations(arch, size) * OVERHEAD;
        Self {
            activations: workers as f64 * (network + supervised),
            kept: within(train.cache_mb, volumes),
            ahead: within(train.prefetch_mb, volumes) + batch as f64 * volume,
        }
    }

    fn total(&self) -> f64 {
        self.activations + self.kept + self.ahead
    }

    /// A sentence where more is needed than `available` bytes.
    pub fn warning(&self, available: u64) -> Option<String> {
        if self.total() <= available as f64 {
            return None;
        }
        let parts = [
            (self.activations, "train.chunk or --threads"),
            (self.kept, "train.cache_mb"),
            (self.ahead, "train.prefetch_mb or train.batch"),
        ];
        let setting = parts.iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("", |part| part.1);
        let gb = |bytes: f64| bytes / 1e9;
        Some(format!(
            "the fit is estimated to take another {:.1} GB of memory ({:.1} for activations, {:.1} for slices that are kept, \
             {:.1} for slices prepared ahead), but {:.1} GB are available; lower {setting}",
            gb(self.total()),
            gb(self.activations),
            gb(self.kept),
            gb(self.ahead),
            gb(available as f64),
        ))
    }
}

const MIB: f64 = 1_048_576.0;

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use runtime::backbone::{Davit, Family, Mlp, Position, PositionResize, Stage, Vit};

    use super::*;
    use crate::task::Pixel;

    fn vit_s() -> Arch {
        let vit = Vit {
            depth: 12,
            heads: 6,
            embedding: Embedding::Cls,
            registers: 0,
            mlp: Mlp::Gelu { hidden: 1536 },
            layer_scale: true,
            position: Position::Table { grid: 37, resize: PositionResize::Bicubic },
        };
        Arch { family: Family::Dinov2, dim: 384, patch: 14, norm_eps: 1e-6, body: Body::Vit(vit) }
    }

    fn needs(slices: usize, volumes: usize, workers: usize, train: &Train) -> Needs {
        let arch = vit_s();
        Needs::of(&Fit { arch: &arch, size: [224, 224], slices, volumes, workers, train })
    }

    /// 257 tokens, 12 blocks, 8 · 384 + 1536 = 4608 floats.
    const SLICE: f64 = 257.0 * 12.0 * 4608.0 * 4.0;
    /// A slice's pixels.
    const PIXELS: f64 = 3.0 * 224.0 * 224.0 * 4.0;

    #[test]
    fn activations_grow_with_the_slices_in_the_network() {
        let train = Train { batch: 4, chunk: 16, cache_mb: 0, prefetch_mb: 0, ..Train::default() };
        let at_a_time = |slices, workers| needs(slices, 9, workers, &train).activations / (SLICE * OVERHEAD);
        // Long volumes: a chunk a worker. Short ones: the batch, shared, but at least a whole volume each.
        assert_eq!([at_a_time(40, 1), at_a_time(40, 4)], [16.0, 64.0]);
        assert_eq!([at_a_time(3, 1), at_a_time(3, 2), at_a_time(3, 4)], [12.0, 12.0, 12.0]);
        assert_eq!(at_a_time(10, 4), 40.0);
        // No batch has more volumes than the table.
        let wide = Train { batch: 1000, chunk: 1000, ..train.clone() };
        assert_eq!(needs(10, 9, 1, &wide).activations, 90.0 * SLICE * OVERHEAD);
    }

    #[test]
    fn masks_take_the_tokens_of_all_slices() {
        let plain = Train { batch: 4, chunk: 16, cache_mb: 0, prefetch_mb: 0, ..Train::default() };
        let pixel = Train { pixel: Some(Pixel { weight: 1.0, width: 32 }), ..plain.clone() };
        let more = needs(40, 9, 2, &pixel).activations - needs(40, 9, 2, &plain).activations;
        assert_eq!(more, 2.0 * 40.0 * 4.0 * (256.0 * (2.0 * 384.0 + 5.0 * 32.0) + 8.0 * 112.0 * 112.0));
    }

    #[test]
    fn a_davit_counts_each_stage_on_its_grid() {
        let stage = |dim: usize, stride: usize, depth: usize| Stage {
            dim,
            depth,
            heads: 1,
            groups: 1,
            kernel: 3,
            stride,
            hidden: 4 * dim,
        };
        let davit = Davit { stages: vec![stage(8, 4, 1), stage(16, 2, 3)], window: 7, final_norm: true };
        let arch =
            Arch { family: Family::Davit, dim: 16, patch: 8, norm_eps: 1e-5, body: Body::Davit(davit) };
        let floats = 8.0 * 8.0 * 2.0 * (12.0 * 8.0) + 4.0 * 4.0 * 6.0 * (12.0 * 16.0);
        assert_eq!(activations(&arch, [32, 32]), 4.0 * floats);
    }

    #[test]
    fn slices_count_up_to_their_limits_and_the_largest_part_is_named() {
        let train = Train { batch: 2, chunk: 4, cache_mb: 1000, prefetch_mb: 100, ..Train::default() };
        let few = needs(10, 3, 1, &train);
        assert_eq!((few.kept, few.ahead), (30.0 * PIXELS, 30.0 * PIXELS + 20.0 * PIXELS));
        let many = needs(10, 1000, 1, &train);
        assert_eq!((many.kept, many.ahead), (1000.0 * MIB, 100.0 * MIB + 20.0 * PIXELS));
        assert_eq!(many.warning(many.total() as u64 + 1), None);
        let warning = many.warning(500_000_000).unwrap();
        assert!(warning.contains("0.5 GB are available; lower train.cache_mb"), "{warning}");
        let wide = needs(100, 3, 8, &Train { chunk: 64, ..train.clone() });
        assert!(wide.warning(1).unwrap().ends_with("lower train.chunk or --threads"));
        let ahead = needs(10, 1000, 1, &Train { prefetch_mb: 4000, ..train });
        assert!(ahead.warning(1).unwrap().ends_with("lower train.prefetch_mb or train.batch"));
    }
}
