//! A frozen linear probe, to compare with: mean-pooled embeddings of the frozen backbone, of several views one after the other, and
//! a logistic head.
//!
//! The embeddings are computed once. The head is L2-penalised logistic regression on standardised features, fitted by
//! Newton's method; the penalty is chosen on the validation volumes from a fixed list.

use indicatif::ProgressBar;
use tch::{TchError, Tensor};

use crate::Error;
use crate::data::{Cache, Split, Study, Table};
use crate::metrics::{auroc, macro_mean};
use crate::model::{Network, Parameters, chunks, median, stored};
use crate::predict::Row;
use crate::task::Task;
use crate::workers::Workers;

/// Penalties λ of `Σ log-loss + λ/2 |w|²` that are tried, the strongest first.
const PENALTIES: [f64; 5] = [1000.0, 100.0, 10.0, 1.0, 0.1];
/// Newton steps; the problem is convex and the steps are damped, so that few are needed.
const STEPS: usize = 50;

/// What the probe comes to.
pub struct Probe {
    /// On test volumes, mean over the labels for which it can be computed.
    pub auroc: Option<f64>,
    /// Its logits for validation and test volumes, in the table's order; none where a label lacks a class among the training volumes.
    pub rows: Vec<Row>,
}

/// A volume's embedding by the frozen backbone, of several views one after the other; a view that is not there is zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooled {
    /// Mean over the slices.
    pub mean: Vec<f64>,
    /// Median over the slices.
    pub median: Vec<f64>,
}

/// Embeds a study without factors, at most `chunk` slices at a time.
pub fn embed(network: &Network, study: &Study, chunk: usize) -> Result<Pooled, TchError> {
    let _guard = tch::no_grad_guard();
    let encoder = &network.encoder;
    let chunk = encoder.forward_chunk(chunk);
    let cls = |x: &Tensor| Ok(encoder.encode(x, None, false)?.cls);
    let mut pooled = Pooled { mean: Vec::new(), median: Vec::new() };
    for slices in &study.views {
        let Some(slices) = slices else {
            for all in [&mut pooled.mean, &mut pooled.median] {
                all.resize(all.len() + encoder.arch().dim, 0.0);
            }
            continue;
        };
        let rows = chunks(slices, chunk, encoder.device(), cls)?;
        let values = |of: Tensor| Ok::<_, TchError>(stored(&of)?.data.into_iter().map(f64::from));
        pooled.mean.extend(values(rows.f_mean_dim(0i64, false, None)?)?);
        pooled.median.extend(values(median(&rows)?.1)?);
    }
    Ok(pooled)
}

/// Fits the probe on mean-pooled embeddings.
pub fn fit(
    workers: &Workers,
    parameters: &Parameters,
    cache: &Cache<'_>,
    task: &Task,
    progress: &ProgressBar,
) -> Result<Probe, Error> {
    let table = cache.table();
    let indices: Vec<usize> = (0..table.samples.len()).collect();
    let chunk = task.train.chunk;
    let work = move |network: &Network, study: &Study| Ok(embed(network, study, chunk)?.mean);
    let features = workers.over(parameters, &indices, |i| cache.get(i), work, |n| progress.inc(n as u64))?;
    let probe = LinearProbe::fit(table, task, &features);
    let rows = features.iter().enumerate().filter(|(i, _)| table.samples[*i].split != Split::Train);
    let row = |(index, features): (usize, &Vec<f64>)| {
        Some(Row { index, logits: probe.logits(features)?, located: None })
    };
    let rows: Vec<Row> = rows.filter_map(|(i, found)| Some((i, found.as_ref()?))).filter_map(row).collect();
    Ok(Probe { auroc: probe.auroc, rows })
}

/// Logistic heads over frozen embeddings, one a label.
pub struct LinearProbe {
    /// On test volumes, mean over the labels for which it can be computed.
    pub auroc: Option<f64>,
    /// Of the training volumes.
    standard: Standard,
    heads: Vec<Option<Head>>,
}

impl LinearProbe {
    /// Fits a head a label on `features`, one a row of `table`, `None` for one that could not be read.
    pub fn fit(table: &Table, task: &Task, features: &[Option<Vec<f64>>]) -> Self {
        let split = |split| {
            let rows = table.split(split).into_iter();
            rows.filter(|&i| features[i].is_some()).collect::<Vec<usize>>()
        };
        let standard = Standard::of(split(Split::Train).into_iter().filter_map(|i| features[i].as_deref()));
        let features: Vec<Option<Vec<f64>>> =
            features.iter().map(|found| Some(standard.apply(found.as_ref()?))).collect();
        let mut areas = Vec::new();
        let heads = (0..task.labels.len()).map(|label| {
            let of = |which| -> (Vec<&[f64]>, Vec<bool>) {
                let known = |i: usize| Some((features[i].as_deref()?, table.samples[i].targets[label]?));
                split(which).into_iter().filter_map(known).unzip()
            };
            let (train, val, test) = (of(Split::Train), of(Split::Val), of(Split::Test));
            let mut best: Option<(f64, Option<f64>, Head)> = None;
            for penalty in PENALTIES {
                let head = Head::fit(&train.0, &train.1, penalty)?;
                let area = |(x, y): &(Vec<&[f64]>, Vec<bool>)| {
                    auroc(&x.iter().map(|x| head.score(x)).collect::<Vec<_>>(), y)
                };
                let chosen_by = area(&val).unwrap_or(f64::NEG_INFINITY);
                if best.as_ref().is_none_or(|(score, ..)| chosen_by > *score) {
                    best = Some((chosen_by, area(&test), head));
                }
            }
            let (_, test, head) = best?;
            areas.push(test);
            Some(head)
        });
        let heads = heads.collect();
        Self { auroc: macro_mean(areas), standard, heads }
    }

    /// `[C]`; `None` where a label lacked a class among the training volumes.
    pub fn logits(&self, features: &[f64]) -> Option<Vec<f32>> {
        let x = self.standard.apply(features);
        self.heads.iter().map(|head| Some(head.as_ref()?.score(&x) as f32)).collect()
    }

    /// Weights and biases of all heads.
    pub fn count(&self) -> usize {
        self.heads.len() * (self.standard.mean.len() + 1)
    }
}

/// Mean and scale of each feature.
struct Standard {
    mean: Vec<f64>,
    /// One over the standard deviation; 0 for a feature that does not vary.
    scale: Vec<f64>,
}

impl Standard {
    fn of<'a>(rows: impl Iterator<Item = &'a [f64]>) -> Self {
        let rows: Vec<&[f64]> = rows.collect();
        let n = rows.len().max(1) as f64;
        let count = rows.first().map_or(0, |row| row.len());
        let mean: Vec<f64> = (0..count).map(|k| rows.iter().map(|x| x[k]).sum::<f64>() / n).collect();
        let scale = (0..count).map(|k| {
            let variance = rows.iter().map(|x| (x[k] - mean[k]).powi(2)).sum::<f64>() / n;
            if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 }
        });
        Self { scale: scale.collect(), mean }
    }

    /// Mean 0 and standard deviation 1 over the rows it was made of.
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        x.iter().zip(&self.mean).zip(&self.scale).map(|((x, mean), scale)| (x - mean) * scale).collect()
    }
}

/// A logistic head: weights, then the bias, which is not penalised.
struct Head(Vec<f64>);

impl Head {
    /// `None` unless both classes are there.
    fn fit(rows: &[&[f64]], labels: &[bool], penalty: f64) -> Option<Self> {
        let positives = labels.iter().filter(|l| **l).count();
        if positives == 0 || positives == labels.len() {
            return None;
        }
        let d = rows[0].len();
        let mut w = vec![0.0; d + 1];
        let penalty = |k: usize| if k < d { penalty } else { 1e-9 };
        let objective = |w: &[f64]| {
            let loss =
                rows.iter().zip(labels).map(|(x, &y)| softplus(if y { -1.0 } else { 1.0 } * score(w, x)));
            loss.sum::<f64>() + w.iter().enumerate().map(|(k, w)| 0.5 * penalty(k) * w * w).sum::<f64>()
        };
        let mut value = objective(&w);
        for _ in 0..STEPS {
            let mut gradient: Vec<f64> = w.iter().enumerate().map(|(k, w)| penalty(k) * w).collect();
            let mut hessian = vec![0.0; (d + 1) * (d + 1)];
            for k in 0..=d {
                hessian[k * (d + 1) + k] = penalty(k);
            }
            for (x, &y) in rows.iter().zip(labels) {
                let p = 1.0 / (1.0 + (-score(&w, x)).exp());
                let (error, weight) = (p - f64::from(u8::from(y)), p * (1.0 - p));
                let feature = |k: usize| x.get(k).copied().unwrap_or(1.0);
                for i in 0..=d {
                    gradient[i] += error * feature(i);
                    let scaled = weight * feature(i);
                    let row = &mut hessian[i * (d + 1)..][..=i];
                    row.iter_mut().enumerate().for_each(|(j, h)| *h += scaled * feature(j));
                }
            }
            let step = solve(hessian, &gradient)?;
            let mut damping = 1.0;
            let next = loop {
                let next: Vec<f64> = w.iter().zip(&step).map(|(w, s)| w - damping * s).collect();
                if objective(&next) <= value || damping < 1e-6 {
                    break next;
                }
                damping *= 0.5;
            };
            w = next;
            let before = std::mem::replace(&mut value, objective(&w));
            if before - value <= 1e-10 * before.abs() {
                break;
            }
        }
        Some(Self(w))
    }

    fn score(&self, x: &[f64]) -> f64 {
        score(&self.0, x)
    }
}

fn score(w: &[f64], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + w[x.len()]
}

fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// Solves `h s = g` for a symmetric positive definite `h` of which the lower triangle is given (Cholesky).
fn solve(mut h: Vec<f64>, g: &[f64]) -> Option<Vec<f64>> {
    let n = g.len();
    for i in 0..n {
        let (above, rest) = h.split_at_mut(i * n);
        let row = &mut rest[..=i];
        for j in 0..i {
            let other = &above[j * n..=j * n + j];
            let dot: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - dot) / other[j];
        }
        let square: f64 = row[..i].iter().map(|x| x * x).sum();
        row[i] = (row[i] - square).sqrt();
        if !(row[i].is_finite() && row[i] > 0.0) {
            return None;
        }
    }
    let mut s = g.to_vec();
    for i in 0..n {
        let dot: f64 = (0..i).map(|j| h[i * n + j] * s[j]).sum();
        s[i] = (s[i] - dot) / h[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|j| h[j * n + i] * s[j]).sum();
        s[i] = (s[i] - dot) / h[i * n + i];
    }
    Some(s)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scikit-learn's `LogisticRegression(C=1/λ)` minimises the same objective; at its minimum the gradient is zero.
    #[test]
    fn the_head_is_the_minimum_of_its_objective() {
        let rows: Vec<Vec<f64>> = (0..40)
            .map(|i| (0..3).map(|k| f64::from((i * (k + 3) * 7 + k) % 11) / 5.0 - 1.0).collect())
            .collect();
        let labels: Vec<bool> = rows.iter().map(|x| x[0] + 0.4 * x[1] * x[2] > 0.1).collect();
        let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
        for penalty in [0.1, 10.0] {
            let head = Head::fit(&rows, &labels, penalty).unwrap();
            for k in 0..4 {
                let weight = if k < 3 { penalty * head.0[k] } else { 0.0 };
                let gradient = rows.iter().zip(&labels).fold(weight, |sum, (x, &y)| {
                    let p = 1.0 / (1.0 + (-head.score(x)).exp());
                    sum + (p - f64::from(u8::from(y))) * x.get(k).copied().unwrap_or(1.0)
                });
                assert!(gradient.abs() < 1e-6, "{penalty} {k} {gradient}");
            }
        }
        assert!(Head::fit(&rows, &[true; 40], 1.0).is_none());
    }

    #[test]
    fn separable_data_stay_finite() {
        let rows = [[-1.0], [-2.0], [1.0], [2.0]];
        let rows: Vec<&[f64]> = rows.iter().map(<[f64; 1]>::as_slice).collect();
        let head = Head::fit(&rows, &[false, false, true, true], 0.1).unwrap();
        assert!(head.0.iter().all(|w| w.is_finite()) && head.score(&[1.0]) > head.score(&[-1.0]));
    }

    #[test]
    fn features_are_standardised_by_the_training_rows() {
        let features = [[1.0, 5.0], [3.0, 5.0], [7.0, 6.0]];
        let standard = Standard::of(features[..2].iter().map(<[f64; 2]>::as_slice));
        assert_eq!(features.map(|x| standard.apply(&x)), [[-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]]);
    }
}
