use crate::backbone::BackboneError;
use crate::engine::EngineError;
use crate::graph::GraphError;
use crate::plugin::PluginError;
use crate::recipe::RecipeError;
use crate::report::ReportError;
use crate::tensor::TensorError;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the user's file or flag is at fault (exit code 2), not the machine (exit code 1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Recipe(e) => e.is_bad_input(),
            Self::Report(e) => e.is_bad_input(),
            Self::Tensor(e) => e.is_bad_input(),
            Self::Backbone(e) => e.is_bad_input(),
            Self::Plugin(e) => e.is_bad_input(),
            Self::Graph(e) => e.is_bad_input(),
            Self::Engine(e) => e.is_bad_input(),
        }
    }
}
