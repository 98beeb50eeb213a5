//! In which number format a fit runs its matrix products, and the loss scaling that f16 needs.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::Error;

/// The format of matrix products and attention during a fit. Factors, norms, sums and embeddings are f32 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with f32's range.
    Bf16,
    /// 16 bits with more digits and less range; on a GPU only.
    F16,
}

impl Precision {
    /// libtorch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }

    /// Refuses f16 on a CPU, where it is several times slower than f32.
    pub fn check(self, device: Device) -> Result<(), Error> {
        if self == Self::F16 && device == Device::Cpu {
            let problem = "precision f16 is for GPUs, expected f32 or bf16 here".into();
            return Err(Error::Device { device: "cpu".into(), problem });
        }
        Ok(())
    }

    /// The scaling that a fit in this format starts with.
    pub fn scaler(self) -> Option<Scaler> {
        (self == Self::F16).then_some(Scaler { scale: 65536.0, good: 0 })
    }
}

/// Good steps after which the scale is doubled.
const INTERVAL: u32 = 2000;

/// The factor on the loss that keeps small gradients in f16's range, adapted as `torch.amp.GradScaler` does it: halved after
/// a step whose gradients left the range (the step is skipped), doubled after 2000 steps that did not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    /// A power of two.
    pub scale: f64,
    /// Good steps since it last changed.
    pub good: u32,
}

impl Scaler {
    /// After a step that was taken.
    pub fn taken(&mut self) {
        self.good += 1;
        if self.good == INTERVAL {
            *self = Self { scale: 2.0 * self.scale, good: 0 };
        }
    }

    /// After a step that must be skipped; false where no smaller scale is left, so that the cause is another.
    pub fn skipped(&mut self) -> bool {
        *self = Self { scale: 0.5 * self.scale, good: 0 };
        self.scale >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_for_gpus() {
        let error = Precision::F16.check(Device::Cpu).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("f32 or bf16"), "{error}");
        Precision::Bf16.check(Device::Cpu).unwrap();
        Precision::F16.check(Device::Cuda(0)).unwrap();
        assert!(Precision::Bf16.scaler().is_none() && Precision::F16.scaler().is_some());
    }

    #[test]
    fn the_scale_follows_its_steps() {
        let mut scaler = Scaler { scale: 4.0, good: 0 };
        (0..INTERVAL - 1).for_each(|_| scaler.taken());
        assert_eq!(scaler, Scaler { scale: 4.0, good: INTERVAL - 1 });
        scaler.taken();
        assert_eq!(scaler, Scaler { scale: 8.0, good: 0 });
        scaler.taken();
        assert_eq!([scaler.skipped(), scaler.skipped(), scaler.skipped()], [true; 3]);
        assert_eq!(scaler, Scaler { scale: 1.0, good: 0 });
        assert!(!scaler.skipped());
    }
}
