//! Which series a device gives to which task, as its operator says it: data, nothing that is evaluated.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::views::check_view_name;
use crate::{Invalid, Pattern, Plane};

/// The selection rules of one task on one device. They narrow what the plugin's signed manifest accepts
/// ([`crate::Accepts`]), never widen it: both must hold.
///
/// An empty list or an absent value asks nothing. What a rule asks for and the series does not say counts as not
/// fulfilled; what a rule excludes and the series does not say counts as not excluded.
///
/// ```
/// let rules: firmware_config::Rules = toml::from_str(r#"
///     modality = ["CT"]
///     description = ["head*", "*cranial*"]
///     slice_thickness_mm = [0.5, 6.0]
///     contrast = false
/// "#).unwrap();
/// rules.validate("rules.hemorrhage").unwrap();
/// assert_eq!(rules.exclude_image_type, ["LOCALIZER"], "unless the file says otherwise");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// DICOM Modality (0008,0060), one of these.
    pub modality: Vec<String>,
    /// DICOM Body Part Examined (0018,0015), one of these, compared without case.
    pub body_part: Vec<String>,
    /// DICOM Series Description (0008,103E) fits one of these.
    pub description: Vec<Pattern>,
    /// DICOM Series Description (0008,103E) fits none of these.
    pub exclude_description: Vec<Pattern>,
    /// The plane in which the scan was acquired, one of these: `axial`, `coronal`, `sagittal`.
    pub plane: Vec<Plane>,
    /// DICOM Slice Thickness (0018,0050) of every slice, `[least, most]` in mm.
    pub slice_thickness_mm: Option<[f64; 2]>,
    /// Distance between slices by their positions, `[least, most]` in mm.
    pub slice_spacing_mm: Option<[f64; 2]>,
    /// DICOM Convolution Kernel (0018,1210) fits one of these.
    pub kernel: Vec<Pattern>,
    /// DICOM Convolution Kernel (0018,1210) fits none of these.
    pub exclude_kernel: Vec<Pattern>,
    /// Whether a contrast agent must be named (0018,0010), or must not.
    pub contrast: Option<bool>,
    /// Least number of slices.
    pub min_slices: Option<usize>,
    /// Greatest number of slices.
    pub max_slices: Option<usize>,
    /// No image has one of these among the values of its DICOM Image Type (0008,0008); `["LOCALIZER"]` unless said.
    pub exclude_image_type: Vec<String>,
    /// For a task with `views`: how many minutes after the last series of a study that it takes the others are waited for; 60
    /// unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views_wait_min: Option<f64>,
    /// For a task that looks at several series of one study: what each view asks for beyond the rules above. The task
    /// waits until each view has a series of its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<String, Rules>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            modality: Vec::new(),
            body_part: Vec::new(),
            description: Vec::new(),
            exclude_description: Vec::new(),
            plane: Vec::new(),
            slice_thickness_mm: None,
            slice_spacing_mm: None,
            kernel: Vec::new(),
            exclude_kernel: Vec::new(),
            contrast: None,
            min_slices: None,
            max_slices: None,
            exclude_image_type: vec!["LOCALIZER".into()],
            views_wait_min: None,
            views: BTreeMap::new(),
        }
    }
}

/// The default of [`Rules::views_wait_min`].
const VIEWS_WAIT_MIN: f64 = 60.0;
/// The greatest [`Rules::views_wait_min`], a week.
const MOST_WAIT_MIN: f64 = 7.0 * 24.0 * 60.0;

impl Rules {
    /// [`Self::views_wait_min`] or its default.
    pub fn views_wait(&self) -> Duration {
        let minutes = self.views_wait_min.unwrap_or(VIEWS_WAIT_MIN);
        // Not valid where this is none.
        Duration::try_from_secs_f64(minutes * 60.0).unwrap_or_default()
    }

    /// Checks what types cannot state; `place` is the dotted path of these rules in their file.
    pub fn validate(&self, place: &str) -> Result<(), Invalid> {
        let ranges =
            [("slice_thickness_mm", self.slice_thickness_mm), ("slice_spacing_mm", self.slice_spacing_mm)];
        for (name, range) in ranges {
            if let Some([least, most]) = range
                && !(0.0 <= least && least <= most && most.is_finite())
            {
                let expected = "[least, most] in mm with 0 <= least <= most";
                return Err(Invalid::new(&format!("{place}.{name}"), format!("[{least}, {most}]"), expected));
            }
        }
        if let (Some(least), Some(most)) = (self.min_slices, self.max_slices)
            && least > most
        {
            let expected = format!("at least min_slices, which is {least}");
            return Err(Invalid::new(&format!("{place}.max_slices"), most, expected));
        }
        if self.plane.contains(&Plane::Acquisition) {
            let expected = "planes of a scan: axial, coronal, sagittal";
            return Err(Invalid::new(&format!("{place}.plane"), "acquisition", expected));
        }
        let words = [
            ("modality", &self.modality),
            ("body_part", &self.body_part),
            ("exclude_image_type", &self.exclude_image_type),
        ];
        for (name, words) in words {
            if words.iter().any(|word| word.trim().is_empty()) {
                return Err(Invalid::new(
                    &format!("{place}.{name}"),
                    "\"\" among others",
                    "values that are not empty",
                ));
            }
        }
        if let Some(minutes) = self.views_wait_min {
            let wrong = |expected: &str| Invalid::new(&format!("{place}.views_wait_min"), minutes, expected);
            if self.views.is_empty() {
                return Err(wrong("left out where there are no views to be waited for"));
            }
            if !(0.0..=MOST_WAIT_MIN).contains(&minutes) {
                return Err(wrong("minutes from 0 to 10080, which is a week"));
            }
        }
        for (view, rules) in &self.views {
            let place = format!("{place}.views.{view}");
            check_view_name(&place, view)?;
            if !rules.views.is_empty() {
                return Err(Invalid::new(&format!("{place}.views"), "there", "absent: a view has no views"));
            }
            rules.validate(&place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Rules {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn rules_come_back_as_they_were_written() {
        let rules = parse(
            r#"
            modality = ["MR"]
            contrast = true
            exclude_image_type = []
            views_wait_min = 1.5
            [views.sagittal]
            plane = ["sagittal"]
            description = ["*t2*"]
            [views.axial]
            plane = ["axial"]
            "#,
        );
        rules.validate("rules.knee").unwrap();
        assert!(rules.exclude_image_type.is_empty());
        assert_eq!(rules.views["axial"].exclude_image_type, ["LOCALIZER"]);
        assert_eq!(rules.views_wait(), Duration::from_secs(90));
        assert_eq!(
            parse("[views.axial]").views_wait(),
            Duration::from_hours(1),
            "unless the file says otherwise"
        );
        assert_eq!(parse(&toml::to_string(&rules).unwrap()), rules);
    }

    #[test]
    fn what_cannot_be_meant_is_told_with_its_place() {
        for (text, place) in [
            ("slice_spacing_mm = [3.0, 1.0]", "rules.t.slice_spacing_mm is [3, 1]"),
            ("slice_thickness_mm = [-1.0, 1.0]", "rules.t.slice_thickness_mm"),
            ("slice_thickness_mm = [nan, 1.0]", "rules.t.slice_thickness_mm"),
            ("min_slices = 9\nmax_slices = 8", "rules.t.max_slices is 8"),
            ("plane = [\"acquisition\"]", "rules.t.plane"),
            ("modality = [\"CT\", \" \"]", "rules.t.modality"),
            ("[views.Sag]", "rules.t.views.Sag is named"),
            ("[views.a.views.b]", "rules.t.views.a.views is there"),
            ("views_wait_min = 5", "rules.t.views_wait_min is 5, but must be left out"),
            ("views_wait_min = -1\n[views.a]", "rules.t.views_wait_min is -1"),
            ("views_wait_min = nan\n[views.a]", "rules.t.views_wait_min is NaN"),
            ("views_wait_min = 10081\n[views.a]", "rules.t.views_wait_min is 10081"),
            ("[views.a]\nviews_wait_min = 5", "rules.t.views.a.views_wait_min is 5"),
            ("[views.a]\nmin_slices = 2\nmax_slices = 1", "rules.t.views.a.max_slices"),
        ] {
            let error = parse(text).validate("rules.t").unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
        let error = toml::from_str::<Rules>("modalty = [\"CT\"]").unwrap_err().to_string();
        assert!(error.contains("modalty"), "{error}");
    }
}
