//! Volumes as the networks in three dimensions take them.

use firmware_config::{Intensity, Recipe};
use tch::{TchError, Tensor};

/// Voxels along an axis, at least: these networks halve their input five times.
pub const LEAST: usize = 32;

/// The size to which a volume of `[S, H, W]` voxels is brought where an axis is shorter than [`LEAST`]; `None` where it is taken as
/// it is.
pub fn enlarged(size: [usize; 3]) -> Option<[usize; 3]> {
    size.iter().any(|&n| n < LEAST).then(|| size.map(|n| n.max(LEAST)))
}

/// The size to which a volume of `[S, H, W]` voxels is brought where an axis is no multiple of [`LEAST`]: the next ones; `None` where
/// it is taken as it is.
pub fn rounded_up(size: [usize; 3]) -> Option<[usize; 3]> {
    size.iter().any(|n| n % LEAST != 0).then(|| size.map(|n| n.next_multiple_of(LEAST)))
}

/// Whether a recipe's three channels show the same, up to each channel's normalisation.
pub fn is_grey(recipe: &Recipe) -> bool {
    match &recipe.intensity {
        Intensity::Window { windows } => windows.len() == 1,
        Intensity::Percentile { .. } | Intensity::ZScore { .. } => true,
    }
}

/// Volumes `[B, S, 3, H, W]` → images `[B, 1, S, H, W]`, the mean over the channels, where these are `grey`; else
/// `[B, 3, S, H, W]`. Resampled (trilinear) to what `resampled` tells of their size.
pub(super) fn image(
    volumes: &Tensor,
    grey: bool,
    resampled: impl Fn([usize; 3]) -> Option<[usize; 3]>,
) -> Result<Tensor, TchError> {
    let image = if grey {
        volumes.f_mean_dim(2i64, false, None)?.f_unsqueeze(1)?
    } else {
        volumes.f_transpose(1, 2)?.f_contiguous()?
    };
    let (_, _, s, h, w) = image.size5()?;
    match resampled([s, h, w].map(|n| n as usize)) {
        Some(size) => image.f_upsample_trilinear3d(size.map(|n| n as i64), false, None, None, None),
        None => Ok(image),
    }
}
