//! The methods that the paper compares with and that are no LoRA on a frozen backbone (arXiv 2512.12887, table 1): networks that are
//! fitted whole.
//!
//! [`fit()`] takes one through the same volumes, in the same order, with the same augmentation, loss and choice of the best epoch as
//! [`crate::fit`] does. The task's running mean (`ema`) and pixel supervision are not used, and the grades of an ordinal task are labels like any
//! others, since the heads are not tied.
//!
//! Weights have the names of the PyTorch modules that the networks follow, and start from draws of [`crate::random`], so that
//! a fit on a CPU gives the same bits each time with the same seed and number of threads.

mod checkpoint;
mod densenet;
mod efficientnet;
mod fit;
mod image;
mod layers;
mod lstm;
mod mst;
mod pretrained;
mod resnet;
mod slice_cnn;
mod swin;
mod unet;
mod voco;
mod weights;

use std::path::Path;

use runtime::backbone::{Backbone, Body, Embedding};
use tch::{Device, TchError, Tensor};

pub use fit::{Fitted, Kept, Options, fit, logits};
pub use image::{LEAST, enlarged, is_grey, rounded_up};
pub use pretrained::start_from;
pub use weights::Weights;

use crate::Error;
use crate::data::Sampling;
use crate::task::Task;
use densenet::DenseNet;
use mst::Mst;
use resnet::ResNet;
use slice_cnn::SliceCnn;
use voco::Voco;
use weights::Maker;

/// A network that is fitted whole.
pub trait Rival {
    /// Volumes `[B, S, 3, H, W]` → logits `[B, C]`. With `train` batch norms go by these volumes, and their running statistics move
    /// towards them.
    fn forward(&self, volumes: &Tensor, train: bool) -> Result<Tensor, TchError>;

    /// Its tensors.
    fn weights(&self) -> &Weights;

    /// The value of `loss`, a scalar made of the logits `[B, C]`, and its gradients in the order of the weights, `[P]`.
    fn gradients(
        &self,
        volumes: &Tensor,
        loss: &dyn Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let value = loss(&self.forward(volumes, true)?)?;
        let (flat, _) = self.weights().gradients(&value, &[])?;
        Ok((value.f_detach()?, flat))
    }

    /// The size to which it resamples a volume of `[S, H, W]` voxels whose size does not suit it; `None` where it takes it as it is.
    fn resampled(&self, size: [usize; 3]) -> Option<[usize; 3]> {
        let _ = size;
        None
    }
}

/// A method to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// DenseNet-121 in three dimensions.
    DenseNet121,
    /// ResNet-18 in three dimensions.
    ResNet18,
    /// ResNet-50 in three dimensions.
    ResNet50,
    /// A 2.5D CNN and a bidirectional LSTM.
    SliceCnn,
    /// The Medical Slice Transformer.
    Mst,
    /// The Swin UNETR of VoCo.
    Voco,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::DenseNet121, Self::ResNet18, Self::ResNet50, Self::SliceCnn, Self::Mst, Self::Voco];

    /// Lower case, with dashes.
    pub fn name(self) -> &'static str {
        match self {
            Self::DenseNet121 => "densenet121-3d",
            Self::ResNet18 => "resnet18-3d",
            Self::ResNet50 => "resnet50-3d",
            Self::SliceCnn => "cnn-bilstm",
            Self::Mst => "mst",
            Self::Voco => "voco",
        }
    }

    /// One line.
    pub fn description(self) -> &'static str {
        match self {
            Self::DenseNet121 => "3D DenseNet-121 from scratch",
            Self::ResNet18 => "3D ResNet-18 from scratch",
            Self::ResNet50 => "3D ResNet-50 from scratch",
            Self::SliceCnn => {
                "EfficientNetV2-S on slices and their neighbours with a bidirectional LSTM, from scratch"
            }
            Self::Mst => {
                "Medical Slice Transformer: the whole backbone fine-tuned, one Transformer layer over the slices"
            }
            Self::Voco => "3D Swin UNETR from VoCo's weights, which the user supplies, fine-tuned whole",
        }
    }

    /// Whether it starts from a backbone.
    pub fn needs_backbone(self) -> bool {
        self == Self::Mst
    }

    fn refused(self, problem: impl Into<String>) -> Error {
        Error::Rival { method: self.name(), problem: problem.into() }
    }
}

/// How a method is fitted; the rest is the task's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
    /// Which volumes an epoch takes.
    pub sampling: Sampling,
}

impl Settings {
    /// What is usual for a method: 1e-4 and 1e-5; of MST, as its paper says, 1e-6 and 1e-2, with classes balanced.
    pub fn usual(method: Method, task: &Task) -> Self {
        match method {
            Method::Mst => Self { lr: 1e-6, decay: 1e-2, sampling: Sampling::Balanced },
            _ => Self { lr: 1e-4, decay: 1e-5, sampling: task.train.sampling },
        }
    }
}

/// The network of a method with its initial values: drawn from the task's seed, or the backbone's; in the size of `weights` that it
/// will start from where the method comes in several sizes.
pub fn build(
    method: Method,
    task: &Task,
    backbone: Option<&Backbone>,
    weights: Option<&Path>,
    device: Device,
) -> Result<Box<dyn Rival>, Error> {
    if !task.views.is_empty() {
        return Err(method.refused(format!(
            "it takes one scan a row, but the task has the views {}; leave it out",
            task.view_names().join(", ")
        )));
    }
    let (labels, grey) = (task.labels.len(), is_grey(&task.recipe));
    let make = Maker::new(task.train.seed, device);
    Ok(match method {
        Method::DenseNet121 => Box::new(DenseNet::new(make, &densenet::Sizes::D121, labels, grey)?),
        Method::ResNet18 => Box::new(ResNet::new(make, &resnet::Sizes::R18, labels, grey)?),
        Method::ResNet50 => Box::new(ResNet::new(make, &resnet::Sizes::R50, labels, grey)?),
        Method::SliceCnn => Box::new(SliceCnn::new(make, &efficientnet::Sizes::V2S, labels, grey)?),
        Method::Mst => {
            let expected = "expected a vision transformer with CLS, such as a DINOv2";
            let backbone = backbone.ok_or_else(|| {
                method.refused(format!("it starts from a backbone, and none was given; {expected}"))
            })?;
            let arch = &backbone.arch;
            if !matches!(&arch.body, Body::Vit(vit) if vit.embedding == Embedding::Cls) {
                let found = format!("the backbone is of the family {}; {expected}", arch.family);
                return Err(method.refused(found));
            }
            Box::new(Mst::new(make, backbone, task.recipe.size, labels, task.train.chunk)?)
        }
        Method::Voco => {
            let width = weights.map_or(Ok(voco::WIDTH), |path| pretrained::voco_width(method, path))?;
            Box::new(Voco::new(make, width, labels, grey, &task.recipe.normalize)?)
        }
    })
}

#[cfg(test)]
mod tests;
