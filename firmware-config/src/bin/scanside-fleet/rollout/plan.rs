//! What an operator plans: waves, shares, and what a device is told on top of what it has.

use std::collections::{BTreeMap, BTreeSet};

use firmware_config::Wanted;

use crate::desired::{DeviceName, Seen};

/// Waves of devices.
pub type Waves = Vec<Vec<DeviceName>>;

/// A share such as `10%` or `2.5%`, in thousandths.
pub fn share(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no share, expected a percentage such as 5% or 2.5%");
    let number: f64 = text.strip_suffix('%').and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
    let thousandths = number * 10.0;
    if !(0.0..=1000.0).contains(&thousandths) || thousandths.fract() != 0.0 {
        return Err(wrong());
    }
    Ok(thousandths as u32)
}

/// Parts devices, in their order, into waves that end at these shares of all; each share is rounded up.
pub fn fractions(devices: &[DeviceName], shares: &str) -> Result<Waves, String> {
    let shares = shares.split(',').map(|text| share(text.trim())).collect::<Result<Vec<_>, _>>()?;
    if shares.last() != Some(&1000) || !shares.is_sorted_by(|a, b| a < b) || shares[0] == 0 {
        return Err("the waves' shares must grow and end with 100%, for example 5%,25%,100%".into());
    }
    let mut waves = Vec::new();
    let mut begin = 0;
    for share in shares {
        let end = (devices.len() * share as usize).div_ceil(1000);
        if end > begin {
            waves.push(devices[begin..end].to_vec());
        }
        begin = end;
    }
    Ok(waves)
}

/// Checks that no device is in two waves.
pub fn distinct(waves: &Waves) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match waves.iter().flatten().find(|device| !seen.insert(*device)) {
        Some(device) => Err(format!("{device} stands in the plan twice, expected each device once")),
        None => Ok(()),
    }
}

/// The tasks that a device is to run at present, which a rollout changes one of.
///
/// A device without a desired state that runs something was set up by hand: what it runs is in no state that could be put back.
pub fn base(device: &DeviceName, seen: &Seen) -> Result<BTreeMap<String, Wanted>, String> {
    if let (Some(_), Some(reason)) = (&seen.desired, &seen.forged) {
        return Err(format!(
            "the desired state of {device} has no force ({reason}): give it one with `scanside-fleet desire` first"
        ));
    }
    if let Some(desired) = &seen.desired {
        return Ok(desired.tasks.clone());
    }
    match seen.taken_down(&BTreeMap::new()).as_slice() {
        [] => Ok(BTreeMap::new()),
        runs => Err(format!(
            "{device} has no desired state and runs {}: give it one with `scanside-fleet desire` first",
            runs.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(count: usize) -> Vec<DeviceName> {
        (0..count).map(|n| format!("north/d{n}").parse().unwrap()).collect()
    }

    #[test]
    fn waves_end_at_their_shares() {
        let sizes = |count, shares: &str| -> Vec<usize> {
            let waves = fractions(&devices(count), shares).unwrap();
            assert_eq!(waves.concat(), devices(count));
            waves.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(1000, "5%,25%,100%"), [50, 200, 750]);
        assert_eq!(sizes(2, "5%,25%,100%"), [1, 1]);
        assert_eq!(sizes(1, "5%,25%,100%"), [1]);
        assert_eq!(sizes(7, " 2.5% , 100%"), [1, 6]);
        assert_eq!(sizes(3, "100%"), [3]);
        for bad in [
            "",
            "5",
            "5%,25%",
            "25%,5%,100%",
            "5%,5%,100%",
            "0%,100%",
            "101%",
            "-1%,100%",
            "x%",
            "0.01%,100%",
        ] {
            assert!(fractions(&devices(3), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_stands_in_one_wave() {
        let [a, b] = [devices(2), devices(1)];
        assert!(distinct(&vec![a.clone()]).is_ok());
        assert!(distinct(&vec![a, b]).unwrap_err().contains("north/d0"));
    }
}
