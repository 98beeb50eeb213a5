use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::path::Path;

use super::table::{Sample, wrong};
use crate::Error;

/// Refuses a table of which a patient or a file stands in two splits: figures on volumes of a patient that was trained on say
/// nothing about new patients.
pub(super) fn check(table: &Path, samples: &[Sample]) -> Result<(), Error> {
    let mut patients = HashMap::new();
    let mut images = HashMap::new();
    for sample in samples {
        let elsewhere = |what: String, first: &Sample, fix: &str| {
            Err(wrong(
                table,
                sample.row,
                format!(
                    "its {what} is in split {} and, by row {}, in split {} too; {fix}",
                    sample.split.name(),
                    first.row,
                    first.split.name()
                ),
            ))
        };
        if let Some(patient) = &sample.patient
            && let Some(first) = in_another_split(&mut patients, patient.clone(), sample)
        {
            return elsewhere(
                format!("patient `{patient}`"),
                first,
                "put all rows of a patient into one split",
            );
        }
        // The same file by another way, as through a link, is the same scan.
        for image in sample.images.iter().flatten() {
            let file = std::fs::canonicalize(image).unwrap_or_else(|_| image.clone());
            if let Some(first) = in_another_split(&mut images, file, sample) {
                let image = format!("image {}", image.display());
                return elsewhere(image, first, "a scan belongs into one split only");
            }
        }
    }
    Ok(())
}

/// The first sample with this key, where that is in another split.
fn in_another_split<'a, K: Hash + Eq>(
    seen: &mut HashMap<K, &'a Sample>,
    key: K,
    sample: &'a Sample,
) -> Option<&'a Sample> {
    match seen.entry(key) {
        Entry::Vacant(vacant) => {
            vacant.insert(sample);
            None
        }
        Entry::Occupied(first) => (first.get().split != sample.split).then_some(*first.get()),
    }
}
