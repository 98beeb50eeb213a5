//! From voxel values to channel values.

use firmware_config::{Intensity, Recipe, Region};

use super::RecipeError;
use super::statistics::{background, extremes, mean_std, percentiles};
use super::view::Lattice;
use crate::volume::Volume;

/// How each of the three channels is made from a raw value.
#[derive(Debug)]
pub(super) struct Channels([Channel; 3]);

/// `(clip((x - low) / range) - mean) / std`.
#[derive(Debug, Clone, Copy)]
struct Channel {
    low: f32,
    range: f32,
    clip: bool,
    mean: f32,
    std: f32,
    padding: f32,
}

impl Channel {
    fn value(&self, raw: f32) -> f32 {
        let scaled = (raw - self.low) / self.range;
        let kept = if self.clip { scaled.clamp(0.0, 1.0) } else { scaled };
        (kept - self.mean) / self.std
    }
}

/// `[low, range, raw value of padding]` of each channel, and whether values are clipped to 0..1.
type Scaling = ([[f64; 3]; 3], bool);

impl Channels {
    /// Takes whatever the recipe needs to know of the whole volume.
    pub fn new(volume: &Volume, lattice: &Lattice, recipe: &Recipe) -> Result<Self, RecipeError> {
        let (scaling, clip) = scaling(volume, lattice, &recipe.intensity)?;
        let (mean, std) = recipe.normalize.mean_std();
        Ok(Self(std::array::from_fn(|c| {
            let [low, range, padding] = scaling[c].map(|x| x as f32);
            let mut channel = Channel { low, range, clip, mean: mean[c], std: std[c], padding: 0.0 };
            channel.padding = channel.value(padding);
            channel
        })))
    }

    /// Channel `c` of raw values.
    pub fn map(&self, c: usize, raw: &[f32], out: &mut [f32]) {
        let channel = self.0[c];
        for (out, &x) in out.iter_mut().zip(raw) {
            *out = channel.value(x);
        }
    }

    /// Channel `c` of raw values, in place.
    pub fn map_in_place(&self, c: usize, values: &mut [f32]) {
        let channel = self.0[c];
        for x in values {
            *x = channel.value(*x);
        }
    }

    /// What stands in channel `c` where a slice is padded: the channel's least value, that is 0 before
    /// normalisation where values are clipped, and the volume's minimum for z-scores.
    pub fn padding(&self, c: usize) -> f32 {
        self.0[c].padding
    }
}

fn scaling(volume: &Volume, lattice: &Lattice, intensity: &Intensity) -> Result<Scaling, RecipeError> {
    let path = || volume.source.path.clone();
    let all = || volume.voxels.iter().copied();
    match intensity {
        Intensity::Window { windows } => {
            // Three windows fill a channel each; of two, the first fills two; one fills all.
            let of = |c: usize| windows[(c + windows.len()).saturating_sub(3)];
            Ok((std::array::from_fn(of).map(|[low, high]| [low, high - low, low]), true))
        }
        Intensity::Percentile { low: p, high: q, region } => {
            let voxels = Voxels::new(volume, lattice, *region)?;
            let found = percentiles(all().filter(|&x| voxels.count(x)), [*p, *q]);
            let [low, high] = found.ok_or_else(|| voxels.none(volume))?;
            if (high as f32) <= (low as f32) {
                return Err(RecipeError::Flat {
                    path: path(),
                    low: *p,
                    high: *q,
                    value: low,
                    region: voxels.words(),
                });
            }
            Ok(([[low, high - low, low]; 3], true))
        }
        Intensity::ZScore { region } => {
            let voxels = Voxels::new(volume, lattice, *region)?;
            let counted = || lattice.values().filter(|&x| voxels.count(x));
            let [low, high] = extremes(counted()).ok_or_else(|| voxels.none(volume))?;
            if low >= high {
                return Err(RecipeError::Constant { path: path(), value: low, region: voxels.words() });
            }
            // The order of `lattice`, since a sum of floats depends on its order.
            let (mean, std) = mean_std(counted());
            Ok(([[mean, std, f64::from(voxels.minimum)]; 3], false))
        }
    }
}

/// The voxels that a statistic counts.
struct Voxels {
    threshold: Option<f32>,
    minimum: f32,
}

impl Voxels {
    /// Refuses a constant volume: there is nothing to scale.
    fn new(volume: &Volume, lattice: &Lattice, region: Region) -> Result<Self, RecipeError> {
        let [low, high] = extremes(volume.voxels.iter().copied()).unwrap_or([0.0; 2]);
        if low >= high {
            let path = volume.source.path.clone();
            return Err(RecipeError::Constant { path, value: low, region: "all voxels" });
        }
        let threshold = (region == Region::Foreground).then(|| background(lattice));
        Ok(Self { threshold, minimum: low })
    }

    fn count(&self, x: f32) -> bool {
        self.threshold.is_none_or(|threshold| x > threshold)
    }

    fn words(&self) -> &'static str {
        if self.threshold.is_some() { "the voxels above the background" } else { "all voxels" }
    }

    fn none(&self, volume: &Volume) -> RecipeError {
        let threshold = self.threshold.unwrap_or(self.minimum);
        RecipeError::NoForeground { path: volume.source.path.clone(), threshold }
    }
}
