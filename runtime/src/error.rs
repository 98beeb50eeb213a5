use crate::backbone::BackboneError;
use crate::engine::EngineError;
use crate::gate::GateError;
use crate::graph::GraphError;
use crate::infer::InferError;
use crate::plugin::PluginError;
#[cfg(feature = "service")]
use crate::publish::PublishError;
use crate::recipe::RecipeError;
use crate::report::ReportError;
use crate::slots::SlotError;
#[cfg(feature = "service")]
use crate::store::StoreError;
use crate::tensor::TensorError;
#[cfg(feature = "service")]
use crate::update::UpdateError;
use crate::volume::VolumeError;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A scan to be read, or a volume to be written.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume that a recipe cannot be applied to.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A heat map or picture that was not written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Weights.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A backbone.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// A task plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A graph to be written.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A graph to be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A task to be loaded or run.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A task that is to be allowed to run.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// A device's plugins.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Results to be published.
    #[cfg(feature = "service")]
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// What must outlive a power cut.
    #[cfg(feature = "service")]
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Signed updates.
    #[cfg(feature = "service")]
    #[error(transparent)]
    Update(#[from] UpdateError),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the user's file or flag is at fault (exit code 2), not the machine (exit code 1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Volume(e) => e.is_bad_input(),
            Self::Recipe(e) => e.is_bad_input(),
            Self::Report(e) => e.is_bad_input(),
            Self::Tensor(e) => e.is_bad_input(),
            Self::Backbone(e) => e.is_bad_input(),
            Self::Plugin(e) => e.is_bad_input(),
            Self::Graph(e) => e.is_bad_input(),
            Self::Engine(e) => e.is_bad_input(),
            Self::Infer(e) => e.is_bad_input(),
            Self::Gate(e) => e.is_bad_input(),
            Self::Slot(e) => e.is_bad_input(),
            #[cfg(feature = "service")]
            Self::Publish(e) => e.is_bad_input(),
            #[cfg(feature = "service")]
            Self::Store(e) => e.is_bad_input(),
            #[cfg(feature = "service")]
            Self::Update(e) => e.is_bad_input(),
        }
    }
}
