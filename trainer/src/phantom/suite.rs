//! What a phantom suite is made of, as TOML.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::PhantomError;

/// The suites that are built in, as `(name, TOML)`.
const BUILT_IN: [(&str, &str); 2] = [
    ("demo", include_str!("../../suites/demo.toml")),
    ("ct-bleed", include_str!("../../suites/ct-bleed.toml")),
];

/// Lower and upper bound of a uniform distribution.
pub type Range = [f64; 2];

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
    /// The label's column.
    pub label: String,
    /// What the values mean.
    pub modality: Modality,
    /// Share of the volumes that get a finding.
    pub prevalence: f64,
    /// Volumes in each split.
    pub counts: Counts,
    /// The voxels of each volume.
    pub grid: Grid,
    /// The real scans.
    #[serde(rename = "template")]
    pub templates: Vec<Template>,
    /// How they are varied.
    pub variation: Variation,
    /// What is planted.
    pub finding: Finding,
    /// Written beside the volumes as `task.toml`, for `fit`.
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

/// What is planted: soft-edged, irregular ellipsoids, cut off where the tissue ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// How many in a positive volume.
    pub count: [usize; 2],
    /// Change of the value inside: a fraction of it (MR) or HU (CT).
    pub contrast: Range,
    /// Radius in the plane, in mm.
    pub radius_mm: Range,
    /// Extent across the slices, in mm.
    pub thickness_mm: Range,
    /// Width of the edge, in mm.
    pub edge_mm: f64,
    /// How far the outline strays, as a fraction of the radius.
    pub irregularity: f64,
    /// Least share of a finding that must lie in tissue.
    pub inside: f64,
}

impl Suite {
    /// A built-in suite by its name, or a TOML file by its path.
    pub fn load(name_or_path: &str) -> Result<Self, PhantomError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
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
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// Reads and checks TOML; `name` stands for it in messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, PhantomError> {
        let suite: Self = toml::from_str(text).map_err(|error| PhantomError::Toml {
            suite: name.into(),
            line: error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
            problem: error.message().trim().replace('\n', ", "),
        })?;
        suite.validate(name)?;
        Ok(suite)
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

    /// Checks what types cannot state; `suite` stands for it in messages.
    pub fn validate(&self, suite: &str) -> Result<(), PhantomError> {
        let check = |ok: bool, field: &str, found: &dyn fmt::Debug, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(PhantomError::Suite {
                suite: suite.into(),
                field: field.into(),
                found: format!("{found:?}"),
                expected: expected.into(),
            })
        };
        let word = |s: &str| {
            !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        let range = |[low, high]: Range, least: f64| low >= least && low <= high && high.is_finite();
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let words = "lower-case letters, digits and dashes";
        check(word(&self.name), "name", &self.name, words)?;
        check(word(&self.label), "label", &self.label, words)?;
        check((0.0..=1.0).contains(&self.prevalence), "prevalence", &self.prevalence, "from 0 to 1")?;

        let g = &self.grid;
        check(
            g.dims.iter().all(|n| (1..=1024).contains(n)),
            "grid.dims",
            &g.dims,
            "1 to 1024 voxels a side",
        )?;
        check(g.spacing_mm.iter().all(|&x| positive(x)), "grid.spacing_mm", &g.spacing_mm, "positive")?;
        check(g.centre_mm.iter().all(|x| x.is_finite()), "grid.centre_mm", &g.centre_mm, "finite")?;

        for split in Split::ALL.into_iter().filter(|&s| self.count(s) > 0) {
            let field = format!("template.splits without {split}");
            let names: Vec<&str> = self.templates.iter().map(|t| t.name.as_str()).collect();
            check(self.templates_of(split).next().is_some(), &field, &names, "one template or more a split")?;
        }
        for t in &self.templates {
            let field = format!("template {} tissue.intensity", t.name);
            check(range(t.tissue.intensity, f64::MIN), &field, &t.tissue.intensity, "[low, high]")?;
            let field = format!("template {} tissue.erode_mm", t.name);
            check((0.0..=20.0).contains(&t.tissue.erode_mm), &field, &t.tissue.erode_mm, "0 to 20 mm")?;
            let field = format!("template {} tissue.maps", t.name);
            let needed = self.modality == Modality::Ct || !t.tissue.maps.is_empty();
            check(needed, &field, &t.tissue.maps, "at least one for MR, whose values are relative to them")?;
        }

        let v = &self.variation;
        check((0.0..=180.0).contains(&v.rotate_deg), "variation.rotate_deg", &v.rotate_deg, "0 to 180")?;
        check(range(v.scale, 0.1), "variation.scale", &v.scale, "[low, high], at least 0.1")?;
        check((0.0..=1e3).contains(&v.shift_mm), "variation.shift_mm", &v.shift_mm, "0 to 1000")?;
        check(
            positive(v.deform_spacing_mm),
            "variation.deform_spacing_mm",
            &v.deform_spacing_mm,
            "positive",
        )?;
        check(positive(v.bias_spacing_mm), "variation.bias_spacing_mm", &v.bias_spacing_mm, "positive")?;
        let fold = v.deform_mm >= 0.0 && v.deform_mm <= v.deform_spacing_mm / 4.0;
        check(
            fold,
            "variation.deform_mm",
            &v.deform_mm,
            "0 to a quarter of deform_spacing_mm, lest it folds",
        )?;
        check(range(v.noise, 0.0), "variation.noise", &v.noise, "[low, high], not negative")?;
        check(range(v.gamma, 0.1), "variation.gamma", &v.gamma, "[low, high], at least 0.1")?;
        check(range(v.level, 0.01), "variation.level", &v.level, "[low, high], at least 0.01")?;
        check((0.0..=1.0).contains(&v.bias), "variation.bias", &v.bias, "0 to 1")?;
        let varied = |[low, high]: Range| low < 1.0 || high > 1.0;
        let plain = !varied(v.gamma) && !varied(v.level) && v.bias <= 0.0;
        let hu = self.modality == Modality::Mr || plain;
        check(hu, "variation", &"gamma, level or bias", "without them for CT, whose values are absolute")?;

        let f = &self.finding;
        let count = f.count[0] >= 1 && f.count[0] <= f.count[1] && f.count[1] <= 100;
        check(count, "finding.count", &f.count, "[low, high], from 1 to 100")?;
        check(range(f.contrast, f64::MIN), "finding.contrast", &f.contrast, "[low, high]")?;
        check(range(f.radius_mm, 0.1), "finding.radius_mm", &f.radius_mm, "[low, high], at least 0.1")?;
        check(
            range(f.thickness_mm, 0.1),
            "finding.thickness_mm",
            &f.thickness_mm,
            "[low, high], at least 0.1",
        )?;
        check(positive(f.edge_mm), "finding.edge_mm", &f.edge_mm, "positive")?;
        check((0.0..=0.5).contains(&f.irregularity), "finding.irregularity", &f.irregularity, "0 to 0.5")?;
        check((0.0..=1.0).contains(&f.inside), "finding.inside", &f.inside, "0 to 1")
    }
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
        assert_eq!(
            error.to_string(),
            "there is no suite \"no-such-suite\": give the path of a TOML file or one of demo, ct-bleed"
        );
        let mut suite = demo();
        suite.prevalence = 1.5;
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
