//! What is written to a device, as plain data.
//!
//! Serde types with their validation and defaults; no tensors, no network, no clock. A box is set up by its
//! `device.toml`, read as a [`device::Device`]. Everything that
//! `runtime` and `trainer` must agree on about a task stands in a [`Manifest`]: the backbone it was
//! fitted on, the [`Recipe`] that turns a volume into network input, what it may be given ([`Accepts`]),
//! and what it must reproduce on a device before it goes live ([`GoldenCase`]). What a device makes of it is the
//! operator's: [`Rules`] say which series a task gets.
//!
//! ```
//! let recipe: firmware_config::Recipe = toml::from_str(r#"
//!     plane = "axial"
//!     size = [224, 224]
//!     intensity = { kind = "window", windows = [[-1000, 1000], [-150, 250], [-1000, 400]] }
//! "#).unwrap();
//! recipe.validate().unwrap();
//! assert!(!recipe.streamable(), "a fixed plane may need the whole volume");
//! ```

mod accepts;
pub mod device;
mod fleet;
mod manifest;
mod names;
mod pattern;
mod recipe;
mod rules;
mod utc;
mod views;

pub use accepts::{Accepts, Observed};
pub use fleet::{
    DESIRED_SCHEMA, Desired, MetadataVersions, Promote, REPORTED_SCHEMA, Reported, ReportedPlugin,
    ReportedTask, Shadow, ShadowReport, TargetRef, TaskState, Wanted,
};
pub use manifest::{
    Activation, AttentionLora, BackboneRef, ContentDtype, GoldenCase, Label, LoraSpec, Manifest, Origin,
    SCHEMA, Task, Threshold, Tolerance,
};
pub use names::{Broker, NameError, TopicLevel};
pub use pattern::Pattern;
pub use recipe::{Crop, Fit, Intensity, Normalize, Plane, Recipe, Region, SliceSelection};
pub use rules::Rules;
pub use utc::Utc;
pub use views::{MissingViews, View, inputs, validate_views};

/// A value in a configuration that its own rules forbid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, but must be {expected}")]
pub struct Invalid {
    /// Dotted path of the field, as in the file.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What would be valid.
    pub expected: String,
}

impl Invalid {
    pub(crate) fn new(field: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Self { field: field.into(), found: found.to_string(), expected: expected.into() }
    }
}
