use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use crate::data::{Slices, Study, three_planes};

/// How slices become one vector. A plugin pools by its query; the others are there to compare it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Attention by a learned query, as in the paper.
    #[default]
    Query,
    /// The mean over the slices.
    Mean,
    /// The median over the slices, each element of the embedding by itself: of an even number of slices the mean of the two in the
    /// middle, as NumPy's `median` and torch's `quantile` have it (torch's `median` takes the lower one).
    Median,
    /// A bidirectional LSTM over the slices in their order: the last states of both directions.
    Lstm,
    /// A Transformer layer with a CLS token over the slices, without positions.
    Transformer,
    /// The mean over three slices only, one in each of three orthogonal planes through the middle ([`three_planes`]).
    ThreePlanes,
}

impl Pooling {
    /// As the task file says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Mean => "mean",
            Self::Median => "median",
            Self::Lstm => "lstm",
            Self::Transformer => "transformer",
            Self::ThreePlanes => "three-planes",
        }
    }

    /// Whether slice weights and heat maps are of the volume's own slices.
    pub fn is_of_slices(self) -> bool {
        self != Self::ThreePlanes
    }

    /// What the network is given of a study.
    pub fn input(self, study: &Study) -> Cow<'_, Study> {
        let planes = |slices: &Option<Arc<Slices>>| slices.as_ref().map(|slices| three_planes(slices).into());
        match self {
            Self::ThreePlanes => Cow::Owned(Study { views: study.views.iter().map(planes).collect() }),
            _ => Cow::Borrowed(study),
        }
    }
}

/// Attention pooling: `rows` `[S, d]` by `query` `[d]` → weights `[S]` and the weighted sum `[d]`.
pub fn attend(rows: &Tensor, query: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let scale = 1.0 / (query.size()[0] as f64).sqrt();
    // libtorch's softmax subtracts the largest score itself.
    let weights = rows.f_mv(query)?.f_mul_scalar(scale)?.f_softmax(0, None)?;
    let pooled = rows.f_transpose(0, 1)?.f_mv(&weights)?;
    Ok((weights, pooled))
}

/// The mean of `rows` `[S, d]`: weights `[S]`, all 1/S, and the mean `[d]`.
pub(super) fn mean(rows: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let count = rows.size()[0];
    let weights = Tensor::f_full([count], 1.0 / count as f64, (Kind::Float, rows.device()))?;
    Ok((weights, rows.f_mean_dim(0i64, false, None)?))
}

/// The median of `rows` `[S, d]`, element by element: weights `[S]` and the median `[d]`. The gradient goes to the elements in the
/// middle, half to each of two. A slice's weight is the share of the median's elements that come from it.
pub(crate) fn median(rows: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let count = rows.size()[0];
    // Stable, so that of equal elements the same one has the gradient each time.
    let (sorted, places) = rows.f_sort_stable(true, 0, false)?;
    let middle = |of: &Tensor| of.f_narrow(0, (count - 1) / 2, 2 - count % 2);
    let taken = middle(&places)?.f_flatten(0, -1)?;
    let times = taken.f_bincount(None::<&Tensor>, count)?.f_to_kind(Kind::Float)?;
    let weights = times.f_div_scalar(taken.numel() as f64)?;
    Ok((weights, middle(&sorted)?.f_mean_dim(0i64, false, None)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value and gradient of `Σ c · pooled` for rows of two elements, with c = (1, 10).
    fn found(
        pool: impl Fn(&Tensor) -> Result<(Tensor, Tensor), TchError>,
        rows: &[[f32; 2]],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let rows = Tensor::from_slice(rows.as_flattened()).view([-1, 2]).set_requires_grad(true);
        let (weights, pooled) = pool(&rows).unwrap();
        assert!(!weights.requires_grad());
        let total = (&pooled * Tensor::from_slice(&[1.0f32, 10.0])).sum(None);
        let gradient = Tensor::run_backward(&[&total], &[&rows], false, false).remove(0);
        let flat = |t: &Tensor| Vec::<f32>::try_from(t.flatten(0, -1)).unwrap();
        (flat(&weights), flat(&pooled.detach()), flat(&gradient))
    }

    #[test]
    fn a_mean_weighs_all_slices_alike() {
        let rows = [[1.0, 8.0], [2.0, -4.0], [6.0, 2.0], [-1.0, 2.0]];
        let (weights, pooled, gradient) = found(mean, &rows);
        assert_eq!((weights, pooled), (vec![0.25; 4], vec![2.0, 2.0]));
        assert_eq!(gradient, [0.25, 2.5].repeat(4));
    }

    #[test]
    fn a_median_is_the_middle_of_each_element() {
        let odd = [[1.0, 8.0], [5.0, -4.0], [3.0, 2.0]];
        let (weights, pooled, gradient) = found(median, &odd);
        // Both elements are the third slice's.
        assert_eq!((weights, pooled), (vec![0.0, 0.0, 1.0], vec![3.0, 2.0]));
        assert_eq!(gradient, [0.0, 0.0, 0.0, 0.0, 1.0, 10.0]);

        let even = [[1.0, 8.0], [5.0, -4.0], [2.0, 2.0], [9.0, 4.0]];
        let (weights, pooled, gradient) = found(median, &even);
        // 2 and 5, 2 and 4: the third slice has a half of both.
        assert_eq!((weights, pooled), (vec![0.0, 0.25, 0.5, 0.25], vec![3.5, 3.0]));
        assert_eq!(gradient, [0.0, 0.0, 0.5, 0.0, 0.5, 5.0, 0.0, 5.0]);
        let (weights, pooled, gradient) = found(median, &even[..1]);
        assert_eq!((weights, pooled, gradient), (vec![1.0], vec![1.0, 8.0], vec![1.0, 10.0]));
    }

    #[test]
    fn of_equal_elements_one_has_the_gradient() {
        let (weights, pooled, gradient) = found(median, &[[1.0, 3.0], [1.0, 3.0], [1.0, 7.0]]);
        assert_eq!((pooled, weights.iter().sum::<f32>()), (vec![1.0, 3.0], 1.0));
        assert_eq!(gradient, [0.0, 0.0, 1.0, 10.0, 0.0, 0.0]);
    }

    /// Against torch's own quantile, which has a backward of its own.
    #[test]
    fn a_median_is_torchs_quantile() {
        for count in [1, 2, 7, 10] {
            let rows = (Tensor::arange(count * 24, (Kind::Float, tch::Device::Cpu)) * 0.7).sin();
            let leaf = |rows: &Tensor| rows.view([count, 24]).copy().set_requires_grad(true);
            let (mine, torchs) = (leaf(&rows), leaf(&rows));
            let (weights, found) = median(&mine).unwrap();
            let expected = torchs.quantile_scalar(0.5, 0, false, "linear");
            let gradient = |of: &Tensor, at: &Tensor| {
                Tensor::run_backward(&[of.square().sum(None)], &[at], false, false).remove(0)
            };
            let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            assert!(off(&found, &expected) < 1e-6, "{count}");
            assert!(off(&gradient(&found, &mine), &gradient(&expected, &torchs)) < 1e-6, "{count}");
            assert!((weights.sum(None).double_value(&[]) - 1.0).abs() < 1e-6, "{count}");
        }
    }
}
