use std::path::PathBuf;

/// Why a volume cannot be prepared as a recipe asks.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The recipe breaks its own rules.
    #[error("the recipe cannot be used: {0}")]
    Invalid(#[from] firmware_config::Invalid),
    /// The volume has no voxels, or not as many as its axes say.
    #[error(
        "{path} has {voxels} voxels for axes of {dims:?}, where a product of three positive lengths is expected"
    )]
    Dims {
        /// The volume's file or folder.
        path: PathBuf,
        /// Length of each stored axis.
        dims: [usize; 3],
        /// Number of voxels found.
        voxels: usize,
    },
    /// A distance between voxels that no scan has.
    #[error("{path} has voxels of {spacing:?} mm, where three positive finite lengths are expected")]
    Spacing {
        /// The volume's file or folder.
        path: PathBuf,
        /// Spacing along each stored axis, in mm.
        spacing: [f64; 3],
    },
    /// A voxel that is NaN or infinite.
    #[error("voxel {index:?} of {path} is {value}, but every voxel must be finite")]
    NotFinite {
        /// The volume's file or folder.
        path: PathBuf,
        /// Stored index of the first such voxel.
        index: [usize; 3],
        /// What stands there.
        value: f32,
    },
    /// All voxels that count are equal, so that no contrast is left to scale.
    #[error(
        "{path}: the volume is constant ({value} in {region}), so the recipe's intensity cannot be scaled"
    )]
    Constant {
        /// The volume's file or folder.
        path: PathBuf,
        /// The one value.
        value: f32,
        /// Which voxels were looked at, in words.
        region: &'static str,
    },
    /// The two percentiles fall on the same value.
    #[error(
        "{path}: percentiles {low} and {high} of {region} are both {value}, so the recipe needs percentiles \
         further apart, or region = \"foreground\""
    )]
    Flat {
        /// The volume's file or folder.
        path: PathBuf,
        /// Lower percentile.
        low: f64,
        /// Upper percentile.
        high: f64,
        /// The value of both.
        value: f64,
        /// Which voxels were looked at, in words.
        region: &'static str,
    },
    /// No voxel lies above the background.
    #[error("{path}: no voxel lies above the background ({threshold}), so the recipe's foreground is empty")]
    NoForeground {
        /// The volume's file or folder.
        path: PathBuf,
        /// Background threshold, in the scan's units.
        threshold: f32,
    },
    /// A mask that does not lie on the voxels of its image.
    #[error(
        "the mask {mask} does not lie on the voxels of {image}: it has {what} {found}, expected {expected}; \
         resample it onto the image"
    )]
    OtherGrid {
        /// The image's file or folder.
        image: PathBuf,
        /// The mask's file or folder.
        mask: PathBuf,
        /// What differs.
        what: &'static str,
        /// The image's.
        expected: String,
        /// The mask's.
        found: String,
    },
}

impl RecipeError {
    /// Whether the user's file or recipe is at fault; always so here, since preparing touches nothing else.
    pub fn is_bad_input(&self) -> bool {
        true
    }
}
