//! Which volume gets what.

use super::label::Target;
use super::random::Dice;
use super::suite::{Split, Suite};

/// For each target whether volume `index` of a split has it, and the how many-th it is in the templates' turn.
///
/// A suite of one label spreads its positives evenly, and positives and negatives see each template equally often. With
/// `labels`, each has one positive in every 1/prevalence volumes, at a place of its own drawing, so that
/// labels go together by chance alone. Either way the first volumes of a suite are a small suite, and n volumes have a
/// positive of every label whose prevalence is at least 1/n.
pub(super) fn deal(suite: &Suite, targets: &[Target], split: Split, index: usize) -> (Vec<bool>, usize) {
    if suite.labels.is_empty() {
        let (positive, nth) = class(targets.first().map_or(0.0, |t| t.prevalence), index);
        return (vec![positive; targets.len()], nth);
    }
    let has = |(label, target): (usize, &Target)| {
        drawn(target.prevalence, index, |nth, places| {
            Dice::of_label(suite.seed, split, label, nth).below(places)
        })
    };
    (targets.iter().enumerate().map(has).collect(), index)
}

/// Whether volume `index` is positive, and the how many-th of its class it is.
fn class(prevalence: f64, index: usize) -> (bool, usize) {
    let positives = |n: usize| (n as f64 * prevalence + 1e-9).floor() as usize;
    let before = positives(index);
    if positives(index + 1) > before { (true, before) } else { (false, index - before) }
}

/// Whether volume `index` is the one positive of its stretch of 1/prevalence volumes; `place` says where in the `nth` stretch of
/// so many volumes that is.
fn drawn(prevalence: f64, index: usize, place: impl Fn(usize, usize) -> usize) -> bool {
    if prevalence <= 0.0 {
        return false;
    }
    let start = |nth: usize| (nth as f64 / prevalence - 1e-9).ceil() as usize;
    let mut nth = (index as f64 * prevalence) as usize;
    if start(nth + 1) <= index {
        nth += 1;
    }
    let (from, to) = (start(nth), start(nth + 1));
    index == from + place(nth, to - from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_spread_evenly_and_exact() {
        let positives = |prevalence, n| (0..n).filter(|&i| class(prevalence, i).0).count();
        assert_eq!(
            [positives(0.5, 80), positives(0.3, 10), positives(0.0, 9), positives(1.0, 9)],
            [40, 3, 0, 9]
        );
        assert_eq!(
            (0..4).map(|i| class(0.5, i)).collect::<Vec<_>>(),
            [(false, 0), (true, 0), (false, 1), (true, 1)]
        );
    }

    #[test]
    fn every_stretch_has_one_positive_wherever_it_is_placed() {
        for prevalence in [0.02, 0.07, 0.15, 0.3, 0.45, 0.5, 0.7, 1.0] {
            for last in [false, true] {
                let place = |_, places: usize| if last { places - 1 } else { 0 };
                for n in [(1.0_f64 / prevalence).ceil() as usize, 100, 1000] {
                    let found = (0..n).filter(|&i| drawn(prevalence, i, place)).count() as f64;
                    assert!(
                        found >= 1.0 && (found - prevalence * n as f64).abs() <= 1.0,
                        "{prevalence} {n}: {found}"
                    );
                }
            }
        }
        assert!(!(0..100).any(|i| drawn(0.0, i, |_, _| 0)));
    }

    #[test]
    fn the_twelve_have_what_they_say_and_both_classes_in_every_split() {
        for name in Suite::twelve() {
            let suite = Suite::load(name).unwrap();
            let targets = suite.targets();
            for split in Split::ALL {
                let n = suite.count(split);
                let dealt: Vec<Vec<bool>> = (0..n).map(|i| deal(&suite, &targets, split, i).0).collect();
                for (i, target) in targets.iter().enumerate() {
                    let positives = dealt.iter().filter(|labels| labels[i]).count();
                    let off = (positives as f64 - target.prevalence * n as f64).abs();
                    assert!(off <= 1.0, "{name} {split} {}: {positives} of {n}", target.name);
                    assert!(
                        positives >= 1 && (positives < n || target.hidden),
                        "{name} {split} {}",
                        target.name
                    );
                }
            }
        }
    }

    #[test]
    fn labels_go_together_by_chance_alone() {
        let suite = Suite::load("t11-chest").unwrap();
        let targets = suite.targets();
        let dealt: Vec<Vec<bool>> = (0..4000).map(|i| deal(&suite, &targets, Split::Train, i).0).collect();
        let rate = |has: &dyn Fn(&[bool]) -> bool| dealt.iter().filter(|l| has(l)).count() as f64 / 4000.0;
        for a in 0..targets.len() {
            for b in 0..a {
                let expected = rate(&|l| l[a]) * rate(&|l| l[b]);
                // Five standard deviations.
                let off = (rate(&|l| l[a] && l[b]) - expected).abs();
                assert!(off < 5.0 * (expected / 4000.0).sqrt(), "{} {}", targets[a].name, targets[b].name);
            }
        }
    }
}
