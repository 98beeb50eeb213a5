//! What a phantom suite is made of, as TOML.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use runtime::volume::Geometry;
use serde::{Deserialize, Serialize};

use super::label::{Finding, Label, Region, Target};
use super::{PhantomError, builtin};

/// Lower and upper bound of a uniform distribution.
pub type Range = [f64; 2];

/// Points of a piecewise linear curve, by rising value.
pub type Tone = Vec<[f64; 2]>;

/// A recipe for labelled volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Lower-case letters, digits and dashes; file names and ids start with it.
    pub name: String,
    /// What it is for, and what it is not.
    pub description: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// The label's column, of a suite of one label; it has no `labels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What the values mean.
    pub modality: Modality,
    /// Share of the volumes that get a finding, of a suite of one label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prevalence: Option<f64>,
    /// Whether masks are written: where any label's finding changes the values by more than half of its contrast. A suite of views
    /// has none.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub masks: bool,
    /// In place of `template`, the name of scans that are built in ([`Suite::anatomies`]).
    #[serde(default, skip_serializing)]
    pub anatomy: Option<String>,
    /// Curve from a scan's values, the median of its tissue being 1, to what is shown, as `[value, shown]`; straight between these
    /// points, level beyond them. MR: another contrast; CT: the HU of a scan that is no CT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tone: Option<Tone>,
    /// Volumes in each split.
    pub counts: Counts,
    /// The voxels of each volume.
    pub grid: Grid,
    /// The same subjects and findings on other grids or in other contrasts, as files and `image:NAME` columns of their own. Findings
    /// are planted where `grid` has tissue.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<String, View>,
    /// The real scans.
    #[serde(rename = "template", default)]
    pub templates: Vec<Template>,
    /// How they are varied.
    pub variation: Variation,
    /// What is planted; of a suite with `labels` what they share.
    pub finding: Finding,
    /// Parts of the templates' space that labels are of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, Region>,
    /// Several labels, each with a finding of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    /// Written beside the volumes as `task.toml`, for `fit`; with the suite's labels, unless it has `labels` of its own.
    pub task: toml::Table,
}

/// What the values of a suite's volumes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Modality {
    /// Arbitrary units: a template's values are divided by the median of its tissue, and written with that
    /// median at about 500. Contrast and noise are fractions of it, noise is Rician.
    #[serde(rename = "MR")]
    Mr,
    /// Hounsfield units: contrast and noise are in HU, noise is Gaussian.
    #[serde(rename = "CT")]
    Ct,
}

/// Volumes in each split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// To fit on.
    pub train: usize,
    /// To choose by.
    pub val: usize,
    /// To report on.
    pub test: usize,
}

impl FromStr for Counts {
    type Err = String;

    /// `TRAIN,VAL,TEST`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[train, val, test]) => Ok(Self { train, val, test }),
            _ => Err("expected three numbers of volumes, as in 60,20,60".into()),
        }
    }
}

/// Part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To fit on.
    Train,
    /// To choose by.
    Val,
    /// To report on.
    Test,
}

impl Split {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        })
    }
}

/// The voxels of each volume: axes along R, A and S.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Voxels along R, A and S.
    pub dims: [usize; 3],
    /// Distance between voxel centres, in mm.
    pub spacing_mm: [f64; 3],
    /// Where the middle of the volume lies in the templates' space, in mm.
    pub centre_mm: [f64; 3],
}

impl Grid {
    /// All voxels, R fastest.
    pub(super) fn voxels(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let dims = self.dims;
        (0..dims[2]).flat_map(move |k| (0..dims[1]).flat_map(move |j| (0..dims[0]).map(move |i| [i, j, k])))
    }

    /// The how many-th a voxel is of them.
    pub(super) fn index(&self, [i, j, k]: [usize; 3]) -> usize {
        i + self.dims[0] * (j + self.dims[1] * k)
    }

    /// The voxel with an index.
    pub(super) fn voxel(&self, index: usize) -> [usize; 3] {
        let [nx, ny, _] = self.dims;
        [index % nx, index / nx % ny, index / (nx * ny)]
    }

    /// Where a voxel's centre is, in mm.
    pub(super) fn position(&self, voxel: [usize; 3]) -> [f64; 3] {
        std::array::from_fn(|a| {
            self.centre_mm[a] + (voxel[a] as f64 - (self.dims[a] as f64 - 1.0) / 2.0) * self.spacing_mm[a]
        })
    }

    pub(super) fn geometry(&self) -> Geometry {
        let origin = self.position([0; 3]);
        let mut affine = [[0.0; 4]; 3];
        for a in 0..3 {
            affine[a][a] = self.spacing_mm[a];
            affine[a][3] = origin[a];
        }
        Geometry { affine }
    }
}

/// One of several ways to look at a subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Its voxels. Default: the suite's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// Its contrast. Default: the suite's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tone: Option<Tone>,
    /// Factor on the findings' contrast, where they show less, or the other way about. Default: 1.
    #[serde(default = "whole")]
    pub contrast: f64,
}

fn whole() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// A real scan that volumes are made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// The file, below the assets folder.
    pub file: String,
    /// The splits that it is used in.
    pub splits: Vec<Split>,
    /// How to read the file where it is a bare array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Raw>,
    /// Swap left and right.
    #[serde(default)]
    pub mirror: bool,
    /// Show only what the tissue's maps cover, as after brain extraction.
    #[serde(default)]
    pub strip: bool,
    /// Where findings may be.
    pub tissue: Tissue,
}

/// A bare array of little-endian 16-bit integers, the first axis fastest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Voxels along each axis.
    pub dims: [usize; 3],
    /// Distance between voxel centres, in mm; the middle of the array is at 0, 0, 0.
    pub spacing_mm: [f64; 3],
    /// The direction in which each index grows: `R` or `L`, then `A` or `P`, then `S` or `I`.
    pub axes: String,
}

/// Where findings may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tissue {
    /// Probability maps in the template's space, below the assets folder; they are added.
    #[serde(default)]
    pub maps: Vec<String>,
    /// Values that are tissue: for MR relative to the median where the maps have tissue, for CT in HU.
    pub intensity: Range,
    /// Without maps: tissue is the largest connected piece of such values, after cutting bridges of twice so
    /// many mm.
    #[serde(default)]
    pub erode_mm: f64,
}

/// How templates are varied; every volume draws its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variation {
    /// Largest rotation about each axis, in degrees.
    pub rotate_deg: f64,
    /// Scaling of each axis.
    pub scale: Range,
    /// Largest shift along each axis, in mm.
    pub shift_mm: f64,
    /// Standard deviation of the smooth deformation's lattice values, in mm.
    pub deform_mm: f64,
    /// Lattice spacing of the deformation, in mm.
    pub deform_spacing_mm: f64,
    /// Noise: standard deviation, as a fraction of the tissue's median (MR) or in HU (CT).
    pub noise: Range,
    /// Exponent of the values (MR only).
    #[serde(default = "one")]
    pub gamma: Range,
    /// Factor on the values (MR only).
    #[serde(default = "one")]
    pub level: Range,
    /// Standard deviation of the log of the smooth bias field (MR only).
    #[serde(default)]
    pub bias: f64,
    /// Lattice spacing of the bias field, in mm.
    #[serde(default = "bias_spacing")]
    pub bias_spacing_mm: f64,
}

fn one() -> Range {
    [1.0, 1.0]
}

fn bias_spacing() -> f64 {
    100.0
}

impl Suite {
    /// A built-in suite by its name, or a TOML file by its path.
    pub fn load(name_or_path: &str) -> Result<Self, PhantomError> {
        if let Some((name, text)) = builtin::SUITES.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let path = Path::new(name_or_path);
        if !path.is_file() {
            let known: Vec<&str> = Self::built_in().collect();
            return Err(PhantomError::UnknownSuite { name: name_or_path.into(), known: known.join(", ") });
        }
        let text = std::fs::read_to_string(path).map_err(PhantomError::io("read", path))?;
        Self::parse(name_or_path, &text)
    }

    /// The names of the suites that are built in.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        builtin::SUITES.iter().map(|(name, _)| *name)
    }

    /// The names of the benchmark's twelve, in its order; they are built in.
    pub fn twelve() -> impl Iterator<Item = &'static str> {
        let numbered =
            |name: &&str| name.starts_with('t') && name[1..].starts_with(|c: char| c.is_ascii_digit());
        Self::built_in().filter(numbered)
    }

    /// The names of the scans that are built in, for `anatomy`.
    pub fn anatomies() -> impl Iterator<Item = &'static str> {
        builtin::ANATOMIES.iter().map(|(name, _)| *name)
    }

    /// Reads and checks TOML; `name` stands for it in messages. Templates stand in the place of an `anatomy`.
    pub fn parse(name: &str, text: &str) -> Result<Self, PhantomError> {
        let mut suite: Self = read_toml(name, text)?;
        if let Some(anatomy) = suite.anatomy.take() {
            let wrong = |expected: String| PhantomError::Suite {
                suite: name.into(),
                field: "anatomy".into(),
                found: format!("{anatomy:?}"),
                expected,
            };
            if !suite.templates.is_empty() {
                return Err(wrong("left out where there are templates".into()));
            }
            let Some((_, text)) = builtin::ANATOMIES.iter().find(|(known, _)| *known == anatomy) else {
                return Err(wrong(format!("one of {}", Self::anatomies().collect::<Vec<_>>().join(", "))));
            };
            suite.templates = read_toml::<builtin::Scans>(&anatomy, text)?.templates;
        }
        suite.validate(name)?;
        Ok(suite)
    }

    /// What each volume has or has not, in the order of the columns.
    pub fn targets(&self) -> Vec<Target> {
        let only = self.label.iter().map(|name| Target {
            name: name.clone(),
            hidden: false,
            prevalence: self.prevalence.unwrap_or_default(),
            finding: self.finding.clone(),
            region: None,
        });
        only.chain(self.labels.iter().flat_map(|l| l.targets(&self.finding, &self.sites))).collect()
    }

    /// The templates of a split.
    pub fn templates_of(&self, split: Split) -> impl Iterator<Item = &Template> {
        self.templates.iter().filter(move |t| t.splits.contains(&split))
    }

    /// Volumes in a split.
    pub fn count(&self, split: Split) -> usize {
        match split {
            Split::Train => self.counts.train,
            Split::Val => self.counts.val,
            Split::Test => self.counts.test,
        }
    }
}

fn read_toml<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, PhantomError> {
    toml::from_str(text).map_err(|error| PhantomError::Toml {
        suite: name.into(),
        line: error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
        problem: error.message().trim().replace('\n', ", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Suite {
        Suite::load("demo").unwrap()
    }

    #[test]
    fn built_in_suites_are_sound_and_test_on_another_template_than_they_train_on() {
        for name in Suite::built_in() {
            let suite = Suite::load(name).unwrap();
            assert_eq!(suite.name, name);
            let files = |split| suite.templates_of(split).map(|t| (&t.file, t.mirror)).collect::<Vec<_>>();
            for test in files(Split::Test) {
                assert!(!files(Split::Train).contains(&test), "{name} tests on what it trains on: {test:?}");
            }
            assert_eq!(Suite::parse(name, &toml::to_string(&suite).unwrap()).unwrap(), suite);
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_one_sentence() {
        let error = Suite::load("no-such-suite").unwrap_err();
        assert!(error.is_bad_input());
        let known = Suite::built_in().collect::<Vec<_>>().join(", ");
        assert_eq!(
            error.to_string(),
            format!(
                "there is no suite \"no-such-suite\": give the path of a TOML file, twelve, or one of {known}"
            )
        );
        let mut suite = demo();
        suite.prevalence = Some(1.5);
        assert_eq!(
            suite.validate("demo").unwrap_err().to_string(),
            "the suite demo has prevalence 1.5, but it must be from 0 to 1"
        );
        let mut suite = demo();
        suite.variation.deform_mm = 40.0;
        assert!(suite.validate("demo").unwrap_err().to_string().contains("variation.deform_mm 40.0"));
        let mut suite = demo();
        suite.templates.retain(|t| !t.splits.contains(&Split::Test));
        assert!(suite.validate("demo").unwrap_err().to_string().contains("without test"));
        let mut suite = demo();
        suite.modality = Modality::Ct;
        assert!(suite.validate("demo").unwrap_err().to_string().contains("without them for CT"));
        let error = Suite::parse("x.toml", "name = 'x'\ncolour = 'red'\n").unwrap_err().to_string();
        assert!(
            error.starts_with("line 2 of the suite x.toml cannot be read: unknown field `colour`"),
            "{error}"
        );
        assert!(!error.contains('\n'));
    }
}
