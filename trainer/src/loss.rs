//! Losses of one volume's logits; labels that are not known add nothing. And of its voxels, where it has a mask.

mod pixel;

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

pub use pixel::pixel;

/// The loss of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Loss {
    /// Sigmoid focal loss (Lin et al., arXiv 1708.02002, eq. 5): `-α_t (1 - p_t)^γ log p_t`.
    Focal {
        /// γ, 2 by default.
        #[serde(default = "gamma")]
        gamma: f64,
        /// Weight of positives, 0.25 by default; negatives weigh `1 - alpha`.
        #[serde(default = "alpha")]
        alpha: f64,
    },
    /// Binary cross-entropy a label.
    Bce,
    /// Cross-entropy over labels of which exactly one holds.
    Ce,
    /// Labels that say "at least grade k" for rising k: binary cross-entropy of each, on a head whose rows are tied
    /// ([`crate::model::Ordinal`]).
    Ordinal,
}

fn gamma() -> f64 {
    2.0
}

fn alpha() -> f64 {
    0.25
}

impl Default for Loss {
    fn default() -> Self {
        Self::Focal { gamma: gamma(), alpha: alpha() }
    }
}

impl Loss {
    /// How many terms `targets` add to the mean: the known labels; for cross-entropy one where a label is positive.
    pub fn terms(self, targets: &[Option<bool>]) -> usize {
        match self {
            Self::Focal { .. } | Self::Bce | Self::Ordinal => targets.iter().flatten().count(),
            Self::Ce => usize::from(targets.contains(&Some(true))),
        }
    }

    /// [`Loss::sum`] with label smoothing (Szegedy et al., arXiv 1512.00567): a share of every target is spread evenly over
    /// the classes, which are all labels for cross-entropy, and yes and no of each label else.
    pub fn smoothed_sum(
        self,
        logits: &Tensor,
        targets: &[Option<bool>],
        smoothing: f64,
    ) -> Result<Tensor, TchError> {
        let sum = self.sum(logits, targets)?;
        if smoothing <= 0.0 || self.terms(targets) == 0 {
            return Ok(sum);
        }
        let (spread, share) = match self {
            Self::Ce => (logits.f_log_softmax(0, None)?.f_mean(None)?.f_neg()?, smoothing),
            Self::Focal { .. } | Self::Bce | Self::Ordinal => {
                let opposite: Vec<_> = targets.iter().map(|t| t.map(|t| !t)).collect();
                (self.sum(logits, &opposite)?, 0.5 * smoothing)
            }
        };
        sum.f_mul_scalar(1.0 - share)?.f_add(&spread.f_mul_scalar(share)?)
    }

    /// Sum of the terms, from `logits` `[C]`; a scalar.
    pub fn sum(self, logits: &Tensor, targets: &[Option<bool>]) -> Result<Tensor, TchError> {
        // Not waited for: a GPU is still at the logits.
        let of = |value: &dyn Fn(Option<bool>) -> f32| -> Result<Tensor, TchError> {
            let values: Vec<f32> = targets.iter().map(|&t| value(t)).collect();
            Tensor::f_from_slice(&values)?.f_to_device_(logits.device(), Kind::Float, true, false)
        };
        if self == Self::Ce {
            let positive = of(&|t| f32::from(t == Some(true)))?;
            return logits.f_log_softmax(0, None)?.f_mul(&positive)?.f_sum(None)?.f_neg();
        }
        // Unknown labels get sign 0 and weight 0. log σ(u) is stable for logits of any size.
        let sign = of(&|t| t.map_or(0.0, |t| if t { 1.0 } else { -1.0 }))?;
        let u = logits.f_mul(&sign)?;
        let log_likelihood = u.f_log_sigmoid()?;
        let (weight, log_likelihood) = match self {
            Self::Focal { gamma, alpha } => {
                let alpha = alpha as f32;
                let weights = of(&|t| t.map_or(0.0, |t| if t { alpha } else { 1.0 - alpha }))?;
                let miss = u.f_neg()?.f_sigmoid()?.f_pow_tensor_scalar(gamma)?;
                (weights, log_likelihood.f_mul(&miss)?)
            }
            _ => (of(&|t| f32::from(t.is_some()))?, log_likelihood),
        };
        log_likelihood.f_mul(&weight)?.f_sum(None)?.f_neg()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(loss: Loss, logits: &[f32], targets: &[Option<bool>]) -> f64 {
        loss.sum(&Tensor::from_slice(logits), targets).unwrap().double_value(&[])
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} {b}");
    }

    const TARGETS: [Option<bool>; 3] = [Some(true), Some(false), None];

    #[test]
    fn values_follow_the_formulas_and_unknown_labels_add_nothing() {
        let logits = [0.7f32, -1.2, 30.0];
        let p = |z: f32| 1.0 / (1.0 + (-f64::from(z)).exp());
        let (p0, p1) = (p(0.7), p(-1.2));
        close(value(Loss::Bce, &logits, &TARGETS), -p0.ln() - (1.0 - p1).ln());
        let focal = -0.25 * (1.0 - p0).powi(2) * p0.ln() - 0.75 * p1.powi(2) * (1.0 - p1).ln();
        close(value(Loss::default(), &logits, &TARGETS), focal);
        let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        close(value(Loss::Ce, &logits, &TARGETS), -(f64::from(logits[0]).exp() / sum).ln());
        assert_eq!(
            [Loss::Bce.terms(&TARGETS), Loss::Ce.terms(&TARGETS), Loss::Ce.terms(&[None; 2])],
            [2, 1, 0]
        );
        close(value(Loss::Ce, &logits, &[None; 3]), 0.0);
    }

    #[test]
    fn huge_logits_give_finite_losses_and_gradients() {
        for loss in [Loss::default(), Loss::Bce, Loss::Ce] {
            for z in [-3e4f32, 3e4] {
                let logits = Tensor::from_slice(&[z, -z, z]).set_requires_grad(true);
                let sum = loss.sum(&logits, &TARGETS).unwrap();
                assert!(sum.double_value(&[]).is_finite());
                sum.backward();
                assert!(logits.grad().isfinite().all().int64_value(&[]) == 1, "{loss:?} {z}");
            }
        }
    }

    #[test]
    fn smoothing_spreads_the_targets() {
        let logits = [0.7f32, -1.2, 0.4];
        let smoothed = |loss: Loss| {
            loss.smoothed_sum(&Tensor::from_slice(&logits), &TARGETS, 0.2).unwrap().double_value(&[])
        };
        let log = |z: f64, positive: bool| -(1.0 / (1.0 + if positive { -z } else { z }.exp())).ln();
        let soft = |z: f32, target: f64| {
            target * log(f64::from(z), true) + (1.0 - target) * log(f64::from(z), false)
        };
        close(smoothed(Loss::Bce), soft(0.7, 0.9) + soft(-1.2, 0.1));
        close(smoothed(Loss::Ordinal), soft(0.7, 0.9) + soft(-1.2, 0.1));
        // torch.nn.functional.cross_entropy(logits, tensor(0), label_smoothing=0.2)
        let total: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        let nll = |z: f32| total.ln() - f64::from(z);
        close(smoothed(Loss::Ce), 0.8 * nll(0.7) + 0.2 / 3.0 * (nll(0.7) + nll(-1.2) + nll(0.4)));
        let flat = Loss::Focal { gamma: 0.0, alpha: 0.5 };
        close(smoothed(flat), 0.5 * smoothed(Loss::Bce));
        let none = Loss::Ce.smoothed_sum(&Tensor::from_slice(&logits), &[None; 3], 0.2).unwrap();
        close(none.double_value(&[]), 0.0);
    }

    #[test]
    fn focal_with_gamma_zero_is_weighted_bce() {
        let (logits, targets) = ([0.3f32, 2.0], [Some(true), Some(false)]);
        let focal = value(Loss::Focal { gamma: 0.0, alpha: 0.5 }, &logits, &targets);
        close(focal, 0.5 * value(Loss::Bce, &logits, &targets));
    }
}
