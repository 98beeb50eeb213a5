//! Which split a patient goes into where a data set says nothing of it.

use crate::data::Split;

/// A number from 0 to below 1 that belongs to `name` alone: the first 32 bits of a SHA-256. Other rows do not move it.
pub(super) fn place(name: &str) -> f64 {
    let digest = runtime::tensor::sha256(name.as_bytes());
    let first = digest.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or_default();
    f64::from(first) / (f64::from(u32::MAX) + 1.0)
}

/// 70 % of the patients for training, 10 % for validation, 20 % for the test.
pub(super) fn of_patient(patient: &str) -> Split {
    match place(&format!("split:{patient}")) {
        x if x < 0.7 => Split::Train,
        x if x < 0.8 => Split::Val,
        _ => Split::Test,
    }
}

/// For data sets with a test split of their own: a tenth of the other patients for validation.
pub(super) fn train_or_val(patient: &str) -> Split {
    if place(&format!("split:{patient}")) < 0.9 { Split::Train } else { Split::Val }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_said_and_stay() {
        let splits: Vec<Split> = (0..10_000).map(|n| of_patient(&n.to_string())).collect();
        let share = |split| splits.iter().filter(|s| **s == split).count();
        assert!((6_800..7_200).contains(&share(Split::Train)), "{}", share(Split::Train));
        assert!((900..1_100).contains(&share(Split::Val)), "{}", share(Split::Val));
        // Tables of earlier versions must come out the same.
        let first: Vec<&str> = (0..8).map(|n| of_patient(&n.to_string()).name()).collect();
        assert_eq!(first, ["train", "test", "train", "train", "train", "train", "test", "train"]);
    }
}
