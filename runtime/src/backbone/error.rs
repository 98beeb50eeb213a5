use std::path::PathBuf;

use super::{Family, Naming};
use crate::tensor::TensorError;

/// Why a backbone could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The file could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The names belong to no known family.
    #[error(
        "{path} holds no backbone that is known here ({detail}); give one of DINOv2, DINOv3, ViT, SigLIP or DaViT in its \
         original, Hugging Face or timm naming", path = path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        detail: String,
    },
    /// Some tensors of the family are not there.
    #[error(
        "{path} is nearest to a {family} backbone in {naming} naming, but lacks {count} of its tensors: {names}; \
         fetch the whole file",
        path = path.display(), count = missing.len(), names = listed(missing)
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The family that most of its names belong to.
        family: Family,
        /// The naming found.
        naming: Naming,
        /// The names of the tensors that are missing.
        missing: Vec<String>,
    },
    /// The blocks hold something that the family does not have, so that leaving it out would give wrong numbers.
    #[error(
        "{path} holds {name}, which a {family} backbone does not have; it is another model, and cannot be used",
        path = path.display()
    )]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The nearest family.
        family: Family,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the rest implies.
    #[error("{path}: tensor {name} has shape {found:?}, expected {expected:?}; the file mixes models", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the other tensors imply.
        expected: Vec<usize>,
    },
    /// The number of heads cannot be told from the file.
    #[error(
        "{path}: the number of attention heads of a {dim}-wide backbone cannot be told from its tensors; \
         put the model's config.json with num_attention_heads beside it", path = path.display()
    )]
    Heads {
        /// The file.
        path: PathBuf,
        /// The width.
        dim: usize,
    },
    /// `config.json` beside the file cannot be used.
    #[error("{path}: {detail}; mend it or take it away", path = path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The files of a sharded backbone do not belong together.
    #[error("{path}: {detail}; fetch all the files of the model again", path = path.display())]
    Shards {
        /// The index file or the folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// More blocks were asked for than there are.
    #[error("{asked} blocks were asked for, but the backbone has {depth}; ask for 1 to {depth}")]
    Blocks {
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        depth: usize,
    },
    /// Blocks of a DaViT are to be left out.
    #[error(
        "the first {asked} blocks of a DaViT were asked for, but its stages have widths of their own and its final norm \
         fits the last alone; use all its blocks"
    )]
    Stages {
        /// How many were asked for.
        asked: usize,
    },
}

impl BackboneError {
    /// Whether the user's file or flag is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Tensor(e) => e.is_bad_input(),
            _ => true,
        }
    }
}

/// The first few names, and how many more there are.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}
