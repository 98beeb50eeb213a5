use serde::{Deserialize, Serialize};

use crate::{Invalid, Plane};

/// What a plugin may be given, signed with its manifest. A device may narrow it, never widen it.
///
/// An empty list accepts any value.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepts {
    /// DICOM Modality (0008,0060): `CT`, `MR`, ….
    #[serde(default)]
    pub modality: Vec<String>,
    /// DICOM Body Part Examined (0018,0015), compared without case.
    #[serde(default)]
    pub body_part: Vec<String>,
    /// The plane in which the scan was acquired.
    #[serde(default)]
    pub plane: Vec<Plane>,
    /// Distance between slices, `[least, most]`, in mm.
    #[serde(default)]
    pub slice_spacing_mm: Option<[f64; 2]>,
    /// Least number of slices.
    #[serde(default)]
    pub min_slices: Option<usize>,
}

/// What is known of a scan. NIfTI files say neither modality nor body part.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// DICOM Modality (0008,0060).
    pub modality: Option<String>,
    /// DICOM Body Part Examined (0018,0015).
    pub body_part: Option<String>,
    /// The plane in which the scan was acquired.
    pub plane: Plane,
    /// Distance between slices along the acquisition axis, in mm.
    pub slice_spacing_mm: f64,
    /// Number of slices along the acquisition axis.
    pub slices: usize,
}

impl Accepts {
    /// Every rule that `scan` breaks, one sentence each. What a scan does not say breaks no rule.
    pub fn refusals(&self, scan: &Observed) -> Vec<String> {
        let mut out = Vec::new();
        let mut one_of = |what: &str, allowed: &[String], found: Option<&str>| {
            if let Some(found) = found
                && !allowed.is_empty()
                && !allowed.iter().any(|a| a.eq_ignore_ascii_case(found.trim()))
            {
                out.push(format!("{what} is {found}, the plugin accepts {}", allowed.join(", ")));
            }
        };
        one_of("modality", &self.modality, scan.modality.as_deref());
        one_of("body part", &self.body_part, scan.body_part.as_deref());
        if !self.plane.is_empty() && !self.plane.contains(&scan.plane) {
            out.push(format!("the scan is {:?}, the plugin accepts {:?}", scan.plane, self.plane));
        }
        if let Some([least, most]) = self.slice_spacing_mm
            && !(least..=most).contains(&scan.slice_spacing_mm)
        {
            let found = scan.slice_spacing_mm;
            out.push(format!("slices are {found:.2} mm apart, the plugin accepts {least} to {most} mm"));
        }
        if let Some(least) = self.min_slices
            && scan.slices < least
        {
            out.push(format!("the scan has {} slices, the plugin needs at least {least}", scan.slices));
        }
        out
    }

    /// Checks the ranges that types cannot state.
    pub fn validate(&self) -> Result<(), Invalid> {
        match self.slice_spacing_mm {
            Some([least, most]) if !(0.0 <= least && least <= most) => Err(Invalid::new(
                "accepts.slice_spacing_mm",
                format!("[{least}, {most}]"),
                "[least, most] in mm with 0 <= least <= most",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_broken_rule_is_told_and_silence_breaks_none() {
        let accepts = Accepts {
            modality: vec!["MR".into()],
            body_part: vec!["HEAD".into(), "BRAIN".into()],
            plane: vec![Plane::Axial],
            slice_spacing_mm: Some([0.5, 8.0]),
            min_slices: Some(8),
        };
        let mut scan = Observed {
            modality: Some("MR".into()),
            body_part: Some("brain".into()),
            plane: Plane::Axial,
            slice_spacing_mm: 7.0,
            slices: 20,
        };
        assert!(accepts.refusals(&scan).is_empty());
        scan.modality = Some("CT".into());
        scan.slices = 3;
        assert_eq!(accepts.refusals(&scan).len(), 2);
        scan.modality = None;
        scan.body_part = None;
        scan.slices = 8;
        assert!(accepts.refusals(&scan).is_empty());
    }
}
