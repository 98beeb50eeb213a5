use firmware_config::Plane;
use serde::{Deserialize, Serialize};

/// A random change of a volume: how often, and how strong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Probability that a volume is changed, 0 to 1.
    pub p: f64,
    /// Least and greatest strength, drawn uniformly between them.
    pub range: [f64; 2],
}

impl Change {
    const fn new(p: f64, least: f64, greatest: f64) -> Self {
        Self { p, range: [least, greatest] }
    }
}

/// Random changes to the training slices, drawn anew for each volume in each epoch; all slices of a volume are changed alike.
///
/// `preset = "paper"` sets every key to AnyMC3D's value; a key that is given goes before the preset. Without either a change
/// is off. The geometric ones act together as one affine map with bilinear sampling, in the pixels of the slice, repeating the
/// edge; the others follow in the order in which they stand here, on the scale `data::augment` tells of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "Keys")]
pub struct Augment {
    /// Probability of mirroring the columns, which exchanges left and right in axial and coronal slices; `true` is 0.5.
    /// Paper: 0.5.
    pub flip_columns: f64,
    /// Probability of mirroring the rows; `true` is 0.5. Paper: 0.5.
    pub flip_rows: f64,
    /// Probability of reversing the order of the slices, which exchanges left and right in sagittal slices; `true` is 0.5.
    /// Paper: 0.5.
    pub flip_slices: f64,
    /// Moved along rows and columns, each by whole pixels; `n` is `{ p = 1, range = [-n, n] }`. Paper: 0.2, -10 to 10.
    pub shift: Change,
    /// Turned in the slice's plane, in degrees, counter-clockwise. Paper: 0.2, -30 to 30.
    pub rotate: Change,
    /// Enlarged in the slice's plane by a factor. Paper: 0.2, 0.7 to 1.4.
    pub zoom: Change,
    /// Gaussian noise of this standard deviation. Paper: 0.25, 0.02.
    pub noise: Change,
    /// Gaussian blur in the slice's plane of this standard deviation in pixels. Paper: 0.2, 0.5 to 1.
    pub blur: Change,
    /// Multiplied by a factor. Paper: 0.15, 0.75 to 1.25.
    pub brightness: Change,
    /// Distance from the volume's mean multiplied by a factor. Paper: 0.15, 0.75 to 1.25.
    pub contrast: Change,
    /// Shrunk in the slice's plane to this share of its sides, and enlarged again. Paper: 0.2, 0.5 to 1.
    pub low_resolution: Change,
    /// x → x^γ. Paper: 0.25, 0.7 to 1.5.
    pub gamma: Change,
    /// x → 1 - (1 - x)^γ, drawn apart from `gamma`. Paper: 0.15, 0.7 to 1.5.
    pub gamma_inverted: Change,
}

/// Values for a set of keys that are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Preset {
    Paper,
}

/// As written in a task file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    preset: Option<Preset>,
    flip_columns: Option<Chance>,
    flip_rows: Option<Chance>,
    flip_slices: Option<Chance>,
    shift: Option<Shift>,
    rotate: Option<Change>,
    zoom: Option<Change>,
    noise: Option<Change>,
    blur: Option<Change>,
    brightness: Option<Change>,
    contrast: Option<Change>,
    low_resolution: Option<Change>,
    gamma: Option<Change>,
    gamma_inverted: Option<Change>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "a flip is true, false or a probability")]
enum Chance {
    Switch(bool),
    P(f64),
}

impl Chance {
    fn p(self) -> f64 {
        match self {
            Self::Switch(on) => 0.5 * f64::from(u8::from(on)),
            Self::P(p) => p,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "a shift is a number of pixels or { p, range }")]
enum Shift {
    Pixels(f64),
    Change(Change),
}

impl Shift {
    fn change(self) -> Change {
        match self {
            Self::Pixels(0.0) => Augment::OFF.shift,
            Self::Pixels(n) => Change::new(1.0, -n, n),
            Self::Change(change) => change,
        }
    }
}

impl From<Keys> for Augment {
    fn from(keys: Keys) -> Self {
        let preset = keys.preset.map_or(Self::OFF, |Preset::Paper| Self::PAPER);
        let chance = |key: Option<Chance>, preset| key.map_or(preset, Chance::p);
        Self {
            flip_columns: chance(keys.flip_columns, preset.flip_columns),
            flip_rows: chance(keys.flip_rows, preset.flip_rows),
            flip_slices: chance(keys.flip_slices, preset.flip_slices),
            shift: keys.shift.map_or(preset.shift, Shift::change),
            rotate: keys.rotate.unwrap_or(preset.rotate),
            zoom: keys.zoom.unwrap_or(preset.zoom),
            noise: keys.noise.unwrap_or(preset.noise),
            blur: keys.blur.unwrap_or(preset.blur),
            brightness: keys.brightness.unwrap_or(preset.brightness),
            contrast: keys.contrast.unwrap_or(preset.contrast),
            low_resolution: keys.low_resolution.unwrap_or(preset.low_resolution),
            gamma: keys.gamma.unwrap_or(preset.gamma),
            gamma_inverted: keys.gamma_inverted.unwrap_or(preset.gamma_inverted),
        }
    }
}

impl Default for Augment {
    fn default() -> Self {
        Self::OFF
    }
}

impl Augment {
    /// No change.
    pub const OFF: Self = Self {
        flip_columns: 0.0,
        flip_rows: 0.0,
        flip_slices: 0.0,
        shift: Change::new(0.0, 0.0, 0.0),
        rotate: Change::new(0.0, 0.0, 0.0),
        zoom: Change::new(0.0, 1.0, 1.0),
        noise: Change::new(0.0, 0.0, 0.0),
        blur: Change::new(0.0, 0.0, 0.0),
        brightness: Change::new(0.0, 1.0, 1.0),
        contrast: Change::new(0.0, 1.0, 1.0),
        low_resolution: Change::new(0.0, 1.0, 1.0),
        gamma: Change::new(0.0, 1.0, 1.0),
        gamma_inverted: Change::new(0.0, 1.0, 1.0),
    };

    /// What AnyMC3D was trained with (arXiv 2512.12887).
    pub const PAPER: Self = Self {
        flip_columns: 0.5,
        flip_rows: 0.5,
        flip_slices: 0.5,
        shift: Change::new(0.2, -10.0, 10.0),
        rotate: Change::new(0.2, -30.0, 30.0),
        zoom: Change::new(0.2, 0.7, 1.4),
        noise: Change::new(0.25, 0.02, 0.02),
        blur: Change::new(0.2, 0.5, 1.0),
        brightness: Change::new(0.15, 0.75, 1.25),
        contrast: Change::new(0.15, 0.75, 1.25),
        low_resolution: Change::new(0.2, 0.5, 1.0),
        gamma: Change::new(0.25, 0.7, 1.5),
        gamma_inverted: Change::new(0.15, 0.7, 1.5),
    };

    /// Whether no volume is ever changed.
    pub fn is_off(&self) -> bool {
        self.flips().iter().all(|(_, p)| *p == 0.0)
            && self.changes().iter().all(|(_, change, _)| change.p == 0.0)
    }

    /// The flip by which left and right are exchanged in slices of a plane, if it is on.
    pub(super) fn exchanges_sides(&self, plane: Plane) -> Option<&'static str> {
        let [columns, slices] = [self.flip_columns > 0.0, self.flip_slices > 0.0];
        match plane {
            Plane::Axial | Plane::Coronal => columns.then_some("flip_columns"),
            // Which plane a scan was acquired in is known scan by scan only.
            Plane::Acquisition if columns => Some("flip_columns"),
            Plane::Sagittal | Plane::Acquisition => slices.then_some("flip_slices"),
        }
    }

    fn flips(&self) -> [(&'static str, f64); 3] {
        [
            ("flip_columns", self.flip_columns),
            ("flip_rows", self.flip_rows),
            ("flip_slices", self.flip_slices),
        ]
    }

    /// Each change with its name and the strengths that make sense.
    fn changes(&self) -> [(&'static str, Change, [f64; 2]); 10] {
        [
            ("shift", self.shift, [-4096.0, 4096.0]),
            ("rotate", self.rotate, [-180.0, 180.0]),
            ("zoom", self.zoom, [0.1, 10.0]),
            ("noise", self.noise, [0.0, 1.0]),
            ("blur", self.blur, [0.0, 20.0]),
            ("brightness", self.brightness, [0.0, 10.0]),
            ("contrast", self.contrast, [0.0, 10.0]),
            ("low_resolution", self.low_resolution, [0.05, 1.0]),
            ("gamma", self.gamma, [0.05, 20.0]),
            ("gamma_inverted", self.gamma_inverted, [0.05, 20.0]),
        ]
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let chance = |key: &str, p: f64| {
            if (0.0..=1.0).contains(&p) {
                return Ok(());
            }
            Err(format!("train.augment.{key} is {p}, but must be a probability from 0 to 1"))
        };
        for (key, p) in self.flips() {
            chance(key, p)?;
        }
        for (key, Change { p, range: [low, high] }, [least, greatest]) in self.changes() {
            chance(&format!("{key}.p"), p)?;
            if !(least <= low && low <= high && high <= greatest) {
                return Err(format!(
                    "train.augment.{key}.range is [{low}, {high}], but must rise within {least} to {greatest}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Augment, String> {
        let augment: Augment = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        augment.validate().map(|()| augment)
    }

    #[test]
    fn keys_go_before_the_preset_and_short_forms_stand_for_long_ones() {
        assert_eq!(read("").unwrap(), Augment::OFF);
        assert!(Augment::OFF.is_off() && !Augment::PAPER.is_off());
        assert_eq!(read("preset = 'paper'").unwrap(), Augment::PAPER);
        let mixed =
            read("preset = 'paper'\nflip_columns = false\nshift = 3\nzoom = { p = 1, range = [1, 2] }")
                .unwrap();
        let expected = Augment {
            flip_columns: 0.0,
            shift: Change::new(1.0, -3.0, 3.0),
            zoom: Change::new(1.0, 1.0, 2.0),
            ..Augment::PAPER
        };
        assert_eq!(mixed, expected);
        assert_eq!(
            read("flip_rows = true\nflip_slices = 0.25").unwrap().flips().map(|(_, p)| p),
            [0.0, 0.5, 0.25]
        );
        // As earlier versions wrote it.
        assert!(read("flip_columns = false\nflip_rows = false\nshift = 0").unwrap().is_off());
        assert_eq!(read("shift = 0").unwrap(), Augment::OFF);
        let back: Augment = toml::from_str(&toml::to_string(&mixed).unwrap()).unwrap();
        assert_eq!(back, mixed);
        let json: Augment = serde_json::from_str(&serde_json::to_string(&mixed).unwrap()).unwrap();
        assert_eq!(json, mixed);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, told) in [
            ("preset = 'nnunet'", "nnunet"),
            ("flip_columns = 'yes'", "a flip is true, false or a probability"),
            ("flip_rows = 1.5", "train.augment.flip_rows is 1.5"),
            ("shift = 'far'", "a shift is a number of pixels or { p, range }"),
            ("zoom = { p = 0.2 }", "range"),
            ("zoom = { p = 2, range = [1, 2] }", "train.augment.zoom.p is 2"),
            ("zoom = { p = 1, range = [0, 2] }", "train.augment.zoom.range is [0, 2]"),
            ("blur = { p = 1, range = [1, 0.5] }", "train.augment.blur.range is [1, 0.5]"),
            ("gamma = { p = 1, range = [nan, 1] }", "train.augment.gamma.range"),
            ("rotation = { p = 1, range = [0, 1] }", "rotation"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
