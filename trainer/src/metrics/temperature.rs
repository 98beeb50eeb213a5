//! Temperature scaling.

use firmware_config::Activation;

/// Temperatures that are looked at.
const RANGE: [f64; 2] = [0.05, 20.0];

/// The temperature T by which logits are to be divided so that the negative log-likelihood of the labels is least (Guo et
/// al., ICML 2017): one T for all labels, which leaves every ranking as it is.
///
/// `volumes` holds a volume's logits `[C]` and what is known of its labels. `None` where no T from 0.05 to 20 is best: no
/// label is known, or the volumes are told apart without a mistake or so badly that the likelihood rises to the end of the
/// range.
pub fn temperature(volumes: &[(&[f32], &[Option<bool>])], activation: Activation) -> Option<f64> {
    let nll = |beta: f64| nll(volumes, activation, beta);
    // In β = 1 / T the likelihood is convex; the golden section narrows ln β down.
    let [low, high] = [-RANGE[1].ln(), -RANGE[0].ln()];
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (low, high);
    for _ in 0..80 {
        let (left, right) = (b - ratio * (b - a), a + ratio * (b - a));
        if nll(left.exp()) <= nll(right.exp()) { b = right } else { a = left }
    }
    let best = f64::midpoint(a, b);
    let inside = best - low > 1e-3 && high - best > 1e-3;
    // Seven significant digits, which every JSON reader gives back as the same number.
    inside.then(|| format!("{:.6e}", (-best).exp()).parse().unwrap_or(1.0))
}

/// Sum of `-log p` of what is known, with logits multiplied by `beta`.
fn nll(volumes: &[(&[f32], &[Option<bool>])], activation: Activation, beta: f64) -> f64 {
    let of = |(logits, targets): &(&[f32], &[Option<bool>])| -> f64 {
        let scaled = logits.iter().map(|&z| f64::from(z) * beta);
        match activation {
            Activation::Sigmoid => {
                let known = scaled.zip(*targets).filter_map(|(z, t)| t.map(|t| if t { -z } else { z }));
                known.map(|z| z.max(0.0) + (-z.abs()).exp().ln_1p()).sum()
            }
            Activation::Softmax => {
                let scaled: Vec<f64> = scaled.collect();
                let Some(truth) = targets.iter().position(|t| *t == Some(true)) else { return 0.0 };
                let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                max + scaled.iter().map(|z| (z - max).exp()).sum::<f64>().ln() - scaled[truth]
            }
        }
    };
    volumes.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const YES: [Option<bool>; 1] = [Some(true)];
    const NO: [Option<bool>; 1] = [Some(false)];

    #[test]
    fn the_closed_form_of_two_levels() {
        // Logits ±2, of which three in four are right: the likelihood is best where σ(2 / T) = 3/4, T = 2 / ln 3.
        let (up, down): (&[f32], &[f32]) = (&[2.0], &[-2.0]);
        let volumes = [
            (up, &YES[..]),
            (up, &YES),
            (up, &YES),
            (up, &NO),
            (down, &NO),
            (down, &NO),
            (down, &NO),
            (down, &YES),
        ];
        let found = temperature(&volumes, Activation::Sigmoid).unwrap();
        assert!((found - 2.0 / 3.0_f64.ln()).abs() < 1e-5, "{found}");
        // Two labels under softmax with logits z and -z are one with a logit of 2 z.
        let pair = |z: f32| [z, -z];
        let first = [Some(true), Some(false)];
        let second = [Some(false), Some(true)];
        let (up, down) = (pair(1.0), pair(-1.0));
        let volumes: Vec<(&[f32], &[Option<bool>])> = vec![
            (&up, &first),
            (&up, &first),
            (&up, &first),
            (&up, &second),
            (&down, &second),
            (&down, &[None, None]),
        ];
        // Right in four of five: σ(2 / T) = 4/5.
        let found = temperature(&volumes, Activation::Softmax).unwrap();
        assert!((found - 2.0 / 4.0_f64.ln()).abs() < 1e-5, "{found}");
    }

    #[test]
    fn none_where_the_likelihood_has_no_maximum() {
        let (up, down): (&[f32], &[f32]) = (&[0.3], &[-0.2]);
        assert_eq!(temperature(&[(up, &YES), (down, &NO)], Activation::Sigmoid), None, "told apart");
        assert_eq!(temperature(&[(up, &NO), (down, &YES)], Activation::Sigmoid), None, "all wrong");
        assert_eq!(temperature(&[(up, &[None])], Activation::Sigmoid), None);
        assert_eq!(temperature(&[], Activation::Softmax), None);
    }
}
