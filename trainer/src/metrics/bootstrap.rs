//! Bootstrap confidence intervals.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{class_sizes, macro_mean, tie};
use crate::random::{Purpose, generator};

/// Resamples that an interval is made from.
pub const REPLICATES: usize = 2000;

/// 95 % percentile intervals over resamples of the cases (Efron and Tibshirani 1993, chapter 13).
///
/// Where every case is told apart, each resample is as well, and the interval has no width; [`super::auroc_with_ci`] has one
/// then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Of each label's AUROC.
    pub auroc: Vec<Option<[f64; 2]>>,
    /// Of each label's average precision.
    pub average_precision: Vec<Option<[f64; 2]>>,
    /// Of the mean AUROC over labels.
    pub macro_auroc: Option<[f64; 2]>,
    /// Of the mean average precision over labels.
    pub macro_average_precision: Option<[f64; 2]>,
}

/// The known cases of one label.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Which case; labels of one case are drawn together.
    pub cases: Vec<usize>,
    /// Their scores.
    pub scores: Vec<f64>,
    /// Their truth.
    pub truth: Vec<bool>,
}

/// Draws `replicates` times as many of `cases` cases as there are, with replacement, and looks at the figures of each draw.
/// Draws without both classes are left out. The same input gives the same intervals.
pub fn bootstrap(labels: &[Known], cases: usize, replicates: usize) -> Bootstrap {
    let ranked: Vec<Option<Ranked>> = labels.iter().map(Ranked::new).collect();
    let mut auroc = vec![Vec::new(); labels.len() + 1];
    let mut precision = auroc.clone();
    let mut times = vec![0u32; cases];
    for replicate in 0..replicates {
        draw(replicate, &mut times);
        let both = ranked.iter().map(|r| r.as_ref().and_then(|r| r.of(&times)));
        let both: Vec<Option<[f64; 2]>> = both.collect();
        for (label, found) in both.iter().enumerate() {
            auroc[label].extend(found.map(|f| f[0]));
            precision[label].extend(found.map(|f| f[1]));
        }
        for (index, all) in [&mut auroc, &mut precision].into_iter().enumerate() {
            all[labels.len()].extend(macro_mean(both.iter().map(|b| b.map(|b| b[index]))));
        }
    }
    let macros = [&mut auroc, &mut precision].map(|all| all.pop().and_then(middle));
    Bootstrap {
        auroc: auroc.into_iter().map(middle).collect(),
        average_precision: precision.into_iter().map(middle).collect(),
        macro_auroc: macros[0],
        macro_average_precision: macros[1],
    }
}

/// 95 % percentile interval of the mean of `values`, one a case, over `replicates` resamples; `None` of none.
pub fn bootstrap_mean(values: &[f64], replicates: usize) -> Option<[f64; 2]> {
    let mean = |times: &[u32]| {
        let sum: f64 = times.iter().zip(values).map(|(&n, x)| f64::from(n) * x).sum();
        (!values.is_empty()).then(|| sum / values.len() as f64)
    };
    resampled(values.len(), replicates, mean)
}

/// 95 % percentile interval of what `of` makes of resamples of `cases` cases, given how often each is there.
pub(super) fn resampled(
    cases: usize,
    replicates: usize,
    of: impl Fn(&[u32]) -> Option<f64>,
) -> Option<[f64; 2]> {
    let mut times = vec![0u32; cases];
    let one = |replicate: usize| {
        draw(replicate, &mut times);
        of(&times)
    };
    middle((0..replicates).filter_map(one).collect())
}

/// The middle 95 % of values.
fn middle(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_unstable_by(f64::total_cmp);
    Some([quantile(&values, 0.025)?, quantile(&values, 0.975)?])
}

/// How often each case is in the resample `replicate`.
fn draw(replicate: usize, times: &mut [u32]) {
    times.fill(0);
    let mut rng = generator(0, Purpose::Bootstrap, 0, replicate as u64);
    for _ in 0..times.len() {
        let case = (u64::from(rng.next_u32()) * times.len() as u64) >> 32;
        times[case as usize] += 1;
    }
}

/// Quantile of sorted values with linear interpolation, as NumPy's default.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * (sorted.len().checked_sub(1)?) as f64;
    let below = sorted[at as usize];
    let above = sorted[(at as usize + 1).min(sorted.len() - 1)];
    Some(below + at.fract() * (above - below))
}

/// Cases by falling score, ties together: sorted once, every resample is one pass.
struct Ranked {
    /// Case and truth.
    order: Vec<(usize, bool)>,
    /// Ends of the runs of equal scores.
    ends: Vec<usize>,
}

impl Ranked {
    /// `None` unless both classes are there.
    fn new(known: &Known) -> Option<Self> {
        let sizes = class_sizes(&known.scores, &known.truth)?;
        if sizes.contains(&0) {
            return None;
        }
        let mut order: Vec<usize> = (0..known.scores.len()).collect();
        order.sort_by(|&a, &b| known.scores[b].total_cmp(&known.scores[a]));
        let mut end = 0;
        let ends = order.chunk_by(|&a, &b| tie(known.scores[a], known.scores[b])).map(|tied| {
            end += tied.len();
            end
        });
        Some(Self {
            ends: ends.collect(),
            order: order.iter().map(|&i| (known.cases[i], known.truth[i])).collect(),
        })
    }

    /// AUROC and average precision where case `c` is there `times[c]` times; `None` unless both classes are.
    fn of(&self, times: &[u32]) -> Option<[f64; 2]> {
        let (mut tp, mut fp, mut lost, mut precision) = (0.0, 0.0, 0.0, 0.0);
        let mut start = 0;
        for &end in &self.ends {
            let (mut positives, mut negatives) = (0.0, 0.0);
            for &(case, truth) in &self.order[start..end] {
                *(if truth { &mut positives } else { &mut negatives }) += f64::from(times[case]);
            }
            // A pair is lost where its negative stands above, and half lost in a tie.
            lost += positives * (fp + negatives / 2.0);
            tp += positives;
            fp += negatives;
            if positives > 0.0 {
                precision += positives * tp / (tp + fp);
            }
            start = end;
        }
        (tp > 0.0 && fp > 0.0).then(|| [1.0 - lost / (tp * fp), precision / tp])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{auroc, auroc_with_ci, average_precision};

    /// Forty cases with ties, of two labels, of which the second is unknown for some.
    fn labels() -> Vec<Known> {
        let score =
            |i: usize| ((i * 13 + i * i * 7) % 17) as f64 + if i.is_multiple_of(3) { 5.0 } else { 0.0 };
        let label = |of: &dyn Fn(usize) -> bool, known: &dyn Fn(usize) -> bool| {
            let cases: Vec<usize> = (0..40).filter(|&i| known(i)).collect();
            let scores = cases.iter().map(|&i| score(i)).collect();
            let truth = cases.iter().map(|&i| of(i)).collect();
            Known { cases, scores, truth }
        };
        vec![
            label(&|i| i.is_multiple_of(3), &|_| true),
            label(&|i| i % 5 == 1, &|i| i % 4 != 2),
            label(&|_| true, &|_| true),
        ]
    }

    #[test]
    fn a_pass_with_multiplicities_equals_the_written_out_resample() {
        let labels = labels();
        let mut times = vec![0; 40];
        for replicate in 0..50 {
            draw(replicate, &mut times);
            assert_eq!(times.iter().sum::<u32>(), 40);
            for label in &labels[..2] {
                let repeated =
                    label.cases.iter().enumerate().flat_map(|(k, &case)| vec![k; times[case] as usize]);
                let (scores, truth): (Vec<f64>, Vec<bool>) =
                    repeated.map(|k| (label.scores[k], label.truth[k])).unzip();
                let found = Ranked::new(label).unwrap().of(&times);
                let expected = auroc(&scores, &truth).zip(average_precision(&scores, &truth));
                let (found, expected) = (found.unwrap(), expected.unwrap());
                assert!((found[0] - expected.0).abs() < 1e-12 && (found[1] - expected.1).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn intervals_are_about_delongs_and_repeat() {
        let labels = labels();
        let found = bootstrap(&labels, 40, REPLICATES);
        assert_eq!(found, bootstrap(&labels, 40, REPLICATES));
        let delong = auroc_with_ci(&labels[0].scores, &labels[0].truth).unwrap();
        let half = 1.96 * delong.standard_error.unwrap();
        let [low, high] = found.auroc[0].unwrap();
        assert!((low - (delong.value - half)).abs() < 0.04, "{low} {}", delong.value - half);
        assert!((high - (delong.value + half)).abs() < 0.04, "{high} {}", delong.value + half);
        assert_eq!(found.auroc[2], None, "one class only");
        let [low, high] = found.macro_auroc.unwrap();
        let mean = macro_mean(labels.iter().map(|l| auroc(&l.scores, &l.truth))).unwrap();
        assert!(low < mean && mean < high);
        assert!(high - low < found.auroc[1].map(|[low, high]| high - low).unwrap(), "a mean varies less");
    }

    #[test]
    fn the_interval_of_a_mean_is_about_the_normal_one() {
        let values: Vec<f64> = (0..60).map(|i| f64::from(i * i % 17) / 16.0).collect();
        let mean = values.iter().sum::<f64>() / 60.0;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 60.0;
        let half = 1.96 * (variance / 60.0).sqrt();
        let [low, high] = bootstrap_mean(&values, REPLICATES).unwrap();
        assert!((low - (mean - half)).abs() < 0.15 * half, "{low} {}", mean - half);
        assert!((high - (mean + half)).abs() < 0.15 * half, "{high} {}", mean + half);
        assert_eq!(bootstrap_mean(&[], REPLICATES), None);
    }

    /// `numpy.quantile([1, 2, 4, 8], 0.3)` is 1.9.
    #[test]
    fn quantiles_are_interpolated() {
        assert!((quantile(&[1.0, 2.0, 4.0, 8.0], 0.3).unwrap() - 1.9).abs() < 1e-12);
        assert_eq!(quantile(&[3.0], 0.975), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
