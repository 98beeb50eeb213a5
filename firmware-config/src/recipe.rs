use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Preprocessing as data: how a volume becomes slices `[S, 3, H, W]`.
///
/// `runtime::recipe` is its one implementation, used by trainer and device alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The plane of the slices.
    pub plane: Plane,
    /// Height and width of a slice as the network sees it, in pixels; multiples of the patch size.
    pub size: [usize; 2],
    /// How a slice is brought to `size`.
    #[serde(default)]
    pub fit: Fit,
    /// What is cut away first.
    #[serde(default)]
    pub crop: Crop,
    /// Which slices are used.
    #[serde(default)]
    pub slices: SliceSelection,
    /// How voxel values become channel values.
    pub intensity: Intensity,
    /// What is done to the channel values last.
    #[serde(default)]
    pub normalize: Normalize,
}

/// The plane of the slices, in patient space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plane {
    /// Slices along inferior to superior.
    Axial,
    /// Slices along posterior to anterior.
    Coronal,
    /// Slices along left to right.
    Sagittal,
    /// The plane in which the scan was acquired: the third stored axis of the file.
    Acquisition,
}

/// How a slice is brought to the recipe's size (bilinear, physical pixel spacing respected).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// Keep the physical aspect ratio; pad the shorter side with the least channel value.
    #[default]
    Pad,
    /// Stretch each side to its size.
    Stretch,
}

/// What is cut away before slicing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// Nothing.
    #[default]
    None,
    /// Everything outside the bounding box of the body (voxels above the background).
    Body,
}

/// Which slices are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SliceSelection {
    /// All of them.
    #[default]
    All,
    /// At most so many, evenly spread from the first to the last.
    AtMost(usize),
    /// From the first to the last that shows the body (voxels above the background); what shows only air is left out.
    Body,
}

/// How voxel values become channel values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Intensity {
    /// Fixed windows `[low, high]` in the scan's units (HU for CT), each scaled to 0..1 and clipped.
    /// One window fills all three channels; three windows fill one each; of two, the first fills two.
    Window {
        /// One to three windows.
        windows: Vec<[f64; 2]>,
    },
    /// Two percentiles of the volume are mapped to 0 and 1 and clipped.
    Percentile {
        /// Lower percentile, 0 to 100.
        low: f64,
        /// Upper percentile, 0 to 100.
        high: f64,
        /// The voxels that count.
        #[serde(default)]
        region: Region,
    },
    /// `(x - mean) / std`.
    ZScore {
        /// The voxels that count.
        #[serde(default)]
        region: Region,
    },
}

/// The voxels that a volume statistic is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Region {
    /// All voxels.
    #[default]
    Volume,
    /// The voxels above the background.
    Foreground,
}

/// What is done to the channel values last.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// ImageNet's mean and standard deviation a channel.
    #[default]
    Imagenet,
    /// Nothing.
    None,
    /// `(x - mean) / std` a channel.
    Channels {
        /// Mean a channel.
        mean: [f32; 3],
        /// Standard deviation a channel.
        std: [f32; 3],
    },
}

impl Normalize {
    /// Mean and standard deviation a channel.
    pub fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        match *self {
            Self::Imagenet => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Self::None => ([0.0; 3], [1.0; 3]),
            Self::Channels { mean, std } => (mean, std),
        }
    }
}

impl Recipe {
    /// Whether each slice's network input depends on that slice alone, so that slices can be encoded
    /// as they arrive: acquisition plane, no crop, all slices, fixed windows.
    pub fn streamable(&self) -> bool {
        self.plane == Plane::Acquisition
            && self.crop == Crop::None
            && self.slices == SliceSelection::All
            && matches!(self.intensity, Intensity::Window { .. })
    }

    /// Checks the ranges that types cannot state.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.size.iter().any(|&n| n == 0 || n > 4096) {
            return Err(Invalid::new(
                "recipe.size",
                format!("{:?}", self.size),
                "two sides of 1 to 4096 pixels",
            ));
        }
        if let SliceSelection::AtMost(0) = self.slices {
            return Err(Invalid::new("recipe.slices.at-most", 0, "at least 1"));
        }
        match &self.intensity {
            Intensity::Window { windows } => {
                let sound = |w: &[f64; 2]| w.iter().all(|x| x.is_finite()) && w[0] < w[1];
                if windows.is_empty() || windows.len() > 3 || !windows.iter().all(sound) {
                    return Err(Invalid::new(
                        "recipe.intensity.windows",
                        format!("{windows:?}"),
                        "one to three [low, high] with low < high",
                    ));
                }
            }
            Intensity::Percentile { low, high, .. } => {
                if !(0.0 <= *low && low < high && *high <= 100.0) {
                    return Err(Invalid::new(
                        "recipe.intensity",
                        format!("percentiles {low} to {high}"),
                        "0 <= low < high <= 100",
                    ));
                }
            }
            Intensity::ZScore { .. } => {}
        }
        let (mean, std) = self.normalize.mean_std();
        if !mean.iter().all(|x| x.is_finite()) || !std.iter().all(|x| x.is_finite() && *x > 0.0) {
            return Err(Invalid::new(
                "recipe.normalize",
                format!("mean {mean:?}, std {std:?}"),
                "finite means and positive standard deviations",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ct() -> Recipe {
        toml::from_str(
            "plane = 'acquisition'\nsize = [224, 224]\n[intensity]\nkind = 'window'\nwindows = [[0, 80]]",
        )
        .unwrap()
    }

    #[test]
    fn only_slice_local_recipes_are_streamable() {
        let recipe = ct();
        assert!(recipe.streamable());
        assert!(!Recipe { plane: Plane::Axial, ..recipe.clone() }.streamable());
        assert!(!Recipe { crop: Crop::Body, ..recipe.clone() }.streamable());
        assert!(!Recipe { slices: SliceSelection::AtMost(32), ..recipe.clone() }.streamable());
        assert!(!Recipe { slices: SliceSelection::Body, ..recipe.clone() }.streamable());
        let z = Intensity::ZScore { region: Region::Foreground };
        assert!(!Recipe { intensity: z, ..recipe }.streamable());
    }

    #[test]
    fn ranges_are_checked_and_named() {
        let bad = Recipe { intensity: Intensity::Window { windows: vec![[80.0, 0.0]] }, ..ct() };
        let error = bad.validate().unwrap_err();
        assert_eq!(error.field, "recipe.intensity.windows");
        let bad = Recipe { size: [0, 224], ..ct() };
        assert_eq!(bad.validate().unwrap_err().field, "recipe.size");
        let bad = Recipe { slices: SliceSelection::AtMost(0), ..ct() };
        assert_eq!(bad.validate().unwrap_err().field, "recipe.slices.at-most");
    }

    #[test]
    fn json_and_toml_say_the_same() {
        let recipe = Recipe {
            slices: SliceSelection::AtMost(24),
            normalize: Normalize::Channels { mean: [0.5; 3], std: [0.25; 3] },
            ..ct()
        };
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
        assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
        assert!(serde_json::from_str::<Recipe>(&json.replace("\"fit\"", "\"fitt\"")).is_err());
    }
}
