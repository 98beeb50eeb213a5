use serde::{Deserialize, Serialize};

/// Mean and spread over runs of a figure from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Runs for which the figure is defined.
    pub runs: usize,
    /// Their mean.
    pub mean: f64,
    /// Sample standard deviation; `None` of one run.
    pub sd: Option<f64>,
    /// 95 % confidence interval of the mean, by Student's t over the runs, within 0 to 1. Runs of a cross-validation share
    /// training volumes, so that theirs is too narrow (Bengio and Grandvalet, JMLR 2004).
    pub ci: Option<[f64; 2]>,
}

impl Spread {
    /// Of the values that are defined; `None` where there are none.
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().flatten().collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        if values.is_empty() {
            return None;
        }
        let sd = (values.len() > 1)
            .then(|| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
        let half = sd.map(|sd| t_quantile(values.len() - 1) * sd / n.sqrt());
        Some(Self {
            runs: values.len(),
            mean,
            sd,
            ci: half.map(|half| [(mean - half).max(0.0), (mean + half).min(1.0)]),
        })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.mean)?;
        if let (Some(sd), Some([low, high])) = (self.sd, self.ci) {
            write!(f, " ± {sd:.3} (95 % CI of the mean {low:.3} to {high:.3})")?;
        }
        Ok(())
    }
}

/// 97.5 % quantile of Student's t with `freedom` degrees of freedom, at least 1: from the usual table up to 10, then the
/// expansion around the normal quantile (Abramowitz and Stegun 26.7.5), good to 1e-5 there.
pub fn t_quantile(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [
        12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157,
        2.228_139,
    ];
    if let Some(&known) = TABLE.get(freedom.max(1) - 1) {
        return known;
    }
    let (z, n) = (1.959_963_984_540_054_f64, freedom as f64);
    let g1 = (z.powi(3) + z) / 4.0;
    let g2 = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    let g4 = (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z)
        / 92_160.0;
    z + g1 / n + g2 / n.powi(2) + g3 / n.powi(3) + g4 / n.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_spread_and_interval_worked_by_hand() {
        // Mean 0.8, sample variance (0.01 + 0 + 0.01) / 2, t with 2 degrees of freedom 4.302653.
        let found = Spread::of([Some(0.7), None, Some(0.8), Some(0.9)]).unwrap();
        assert_eq!(found.runs, 3);
        assert!((found.mean - 0.8).abs() < 1e-12 && (found.sd.unwrap() - 0.1).abs() < 1e-12);
        let half = 4.302_653 * 0.1 / 3.0_f64.sqrt();
        assert!((found.ci.unwrap()[0] - (0.8 - half)).abs() < 1e-6);
        assert_eq!(Spread::of([Some(0.5), Some(1.0)]).unwrap().ci, Some([0.0, 1.0]));
        let one = Spread::of([Some(0.7)]).unwrap();
        assert_eq!((one.sd, one.ci), (None, None));
        assert_eq!(Spread::of([None]), None);
        assert_eq!(
            Spread::of([Some(0.5); 2]).unwrap().to_string(),
            "0.500 ± 0.000 (95 % CI of the mean 0.500 to 0.500)"
        );
    }

    /// `scipy.stats.t.ppf(0.975, n)`.
    #[test]
    fn quantiles_are_those_of_tables() {
        for (n, expected) in
            [(1, 12.706_205), (4, 2.776_445), (11, 2.200_985), (19, 2.093_024), (120, 1.979_930)]
        {
            assert!((t_quantile(n) - expected).abs() < 1e-5, "{n} {}", t_quantile(n));
        }
    }
}
