//! What is planted, and what it is called.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::suite::Range;

/// What is planted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Focal or diffuse.
    #[serde(default, skip_serializing_if = "Form::is_focal")]
    pub form: Form,
    /// How many in a positive volume; of a diffuse finding there is one.
    pub count: [usize; 2],
    /// Change of the value inside: a fraction of it (MR) or HU (CT).
    pub contrast: Range,
    /// Radius in the plane, in mm; of a diffuse finding the distance over which it comes and goes.
    pub radius_mm: Range,
    /// Extent across the slices, in mm; a diffuse finding has none.
    pub thickness_mm: Range,
    /// Width of the edge, in mm; a diffuse finding has none.
    pub edge_mm: f64,
    /// How far the outline strays, as a fraction of the radius; a diffuse finding has none.
    pub irregularity: f64,
    /// Least share of a focal finding that must lie in tissue.
    pub inside: f64,
}

/// What a finding looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Soft-edged, irregular ellipsoids, cut off where the tissue ends.
    #[default]
    Focal,
    /// Diffuse: smooth patches over about half of the tissue, all changed to one side.
    Patchy,
    /// Diffuse: all of the tissue, brighter here and darker there by `contrast` (one standard deviation), so that its
    /// mean stays.
    Mottled,
}

impl Form {
    /// Whether it is what a finding is unless said otherwise.
    pub fn is_focal(&self) -> bool {
        *self == Self::Focal
    }
}

/// A box in the templates' space, left and right as in the volume (a mirrored template's too).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Region {
    /// To the right of the first, to the left of the second, in mm along R.
    pub x_mm: Range,
    /// The same along A.
    pub y_mm: Range,
    /// The same along S.
    pub z_mm: Range,
}

impl Default for Region {
    fn default() -> Self {
        let all = [f64::NEG_INFINITY, f64::INFINITY];
        Self { x_mm: all, y_mm: all, z_mm: all }
    }
}

impl Region {
    pub(super) fn holds(&self, point: [f64; 3]) -> bool {
        let inside = |([low, high], x): (Range, f64)| low <= x && x <= high;
        [self.x_mm, self.y_mm, self.z_mm].into_iter().zip(point).all(inside)
    }
}

/// A label of a suite with several: how often, where, and in what its finding differs from the suite's `finding`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Its column.
    pub name: String,
    /// Share of the volumes that get it, whatever else they get.
    pub prevalence: f64,
    /// Planted, but no column: what is there without being asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
    /// Where it may be: one of `sites`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// In place of one label, a label `NAME-SITE` for each of these `sites`, each with this prevalence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// As in [`Finding`], and so are those below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<[usize; 2]>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<Range>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub radius_mm: Option<Range>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thickness_mm: Option<Range>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_mm: Option<f64>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub irregularity: Option<f64>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<f64>,
}

/// One thing that a volume has or has not, with all that is said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its column.
    pub name: String,
    /// Whether it has no column.
    pub hidden: bool,
    /// Share of the volumes that get it.
    pub prevalence: f64,
    /// What they get.
    pub finding: Finding,
    /// Where; anywhere in the tissue if not said.
    pub region: Option<Region>,
}

impl Label {
    /// The label, or one a site. A site that is not known counts as anywhere; [`Suite::validate`](super::Suite::validate)
    /// refuses it.
    pub(super) fn targets(&self, shared: &Finding, sites: &BTreeMap<String, Region>) -> Vec<Target> {
        let finding = Finding {
            form: self.form.unwrap_or(shared.form),
            count: self.count.unwrap_or(shared.count),
            contrast: self.contrast.unwrap_or(shared.contrast),
            radius_mm: self.radius_mm.unwrap_or(shared.radius_mm),
            thickness_mm: self.thickness_mm.unwrap_or(shared.thickness_mm),
            edge_mm: self.edge_mm.unwrap_or(shared.edge_mm),
            irregularity: self.irregularity.unwrap_or(shared.irregularity),
            inside: self.inside.unwrap_or(shared.inside),
        };
        let target = |name: String, site: Option<&String>| Target {
            name,
            hidden: self.hidden,
            prevalence: self.prevalence,
            finding: finding.clone(),
            region: site.and_then(|site| sites.get(site)).copied(),
        };
        if self.sites.is_empty() {
            return vec![target(self.name.clone(), self.site.as_ref())];
        }
        self.sites.iter().map(|site| target(format!("{}-{site}", self.name), Some(site))).collect()
    }
}
