use std::fmt;
use std::str::FromStr;

use firmware_config::{MissingViews, SliceSelection};

use super::Base;
use super::method::Kind;
use crate::model::Pooling;
use crate::task::{Pixel, Targets, Task};

/// One thing in which a method's row differs from the task as it is: the paper's ablations.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Only this share of the training volumes, above 0 and at most 1.
    Data(f64),
    /// Another rank of the factors; their scale alpha / rank stays.
    Rank(usize),
    /// Factors at these places only.
    Targets(Targets),
    /// At most so many slices of a volume, evenly spread.
    Slices(usize),
    /// Pixel supervision with this weight; 0 is none.
    Pixel(f64),
    /// Of a task of several views this one alone, as a task of one scan.
    View(String),
}

/// What may be changed, for messages.
const EXPECTED: &str = "+data=SHARE (above 0, at most 1), +rank=NUMBER, +targets=PLACE.PLACE (of patch, qkv, output), +slices=NUMBER, \
                        +pixel=WEIGHT (0 for none) or +view=NAME, each once and where the method has it";

impl Change {
    fn key(&self) -> &'static str {
        match self {
            Self::Data(_) => "data",
            Self::Rank(_) => "rank",
            Self::Targets(_) => "targets",
            Self::Slices(_) => "slices",
            Self::Pixel(_) => "pixel",
            Self::View(_) => "view",
        }
    }

    /// Whether such a method can be changed in that way.
    fn fits(&self, base: Base) -> bool {
        match self {
            Self::Data(_) | Self::Slices(_) | Self::View(_) => true,
            Self::Rank(_) | Self::Targets(_) => matches!(base.kind(), Kind::Lora(_)),
            Self::Pixel(_) => matches!(base.kind(), Kind::Lora(pooling) if pooling != Pooling::ThreePlanes),
        }
    }

    /// Changes the task; what is about the table is not the task's. One sentence where the task has not what is changed.
    pub(super) fn apply(&self, task: &mut Task) -> Result<(), String> {
        match self {
            Self::Data(_) => {}
            Self::Rank(rank) => {
                task.lora.alpha *= *rank as f32 / task.lora.rank as f32;
                task.lora.rank = *rank;
            }
            Self::Targets(targets) => task.lora.targets = *targets,
            Self::Slices(most) => {
                let own = task.views.values_mut().filter_map(|view| view.recipe.as_mut());
                for recipe in own.chain([&mut task.recipe]) {
                    recipe.slices = SliceSelection::AtMost(*most);
                }
            }
            Self::Pixel(weight) => {
                let pixel = task.train.pixel.unwrap_or_default();
                task.train.pixel = (*weight > 0.0).then_some(Pixel { weight: *weight, ..pixel });
            }
            Self::View(name) => {
                let Some(view) = task.views.remove(name) else {
                    let known = task.view_names().join(", ");
                    let known = if known.is_empty() { "none".into() } else { known };
                    return Err(format!("the task has no view {name}, which +view names; it has {known}"));
                };
                task.recipe = view.recipe.unwrap_or_else(|| task.recipe.clone());
                task.views.clear();
                task.missing_views = MissingViews::default();
            }
        }
        Ok(())
    }

    fn parse(part: &str) -> Option<Self> {
        let (key, value) = part.split_once('=')?;
        let count = |range: std::ops::RangeInclusive<usize>| value.parse().ok().filter(|n| range.contains(n));
        match key {
            "data" => value.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0).map(Self::Data),
            "rank" => count(1..=1024).map(Self::Rank),
            "targets" => value.parse().ok().map(Self::Targets),
            "slices" => count(1..=100_000).map(Self::Slices),
            "pixel" => value.parse().ok().filter(|w: &f64| *w >= 0.0 && w.is_finite()).map(Self::Pixel),
            "view" => {
                let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                (!value.is_empty() && value.chars().all(sound)).then(|| Self::View(value.into()))
            }
            _ => None,
        }
    }

    /// Those behind the name of a method, `KEY=VALUE` each.
    pub(super) fn all<'a>(
        method: &str,
        base: Base,
        parts: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<Self>, String> {
        let mut changes: Vec<Self> = Vec::new();
        for part in parts {
            let new =
                |change: &Self| change.fits(base) && !changes.iter().any(|other| other.key() == change.key());
            let change = Self::parse(part).filter(new);
            changes.push(
                change.ok_or_else(|| format!("the method `{method}` has `+{part}`, expected {EXPECTED}"))?,
            );
        }
        Ok(changes)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}=", self.key())?;
        match self {
            Self::Data(number) | Self::Pixel(number) => write!(f, "{number}"),
            Self::Rank(number) | Self::Slices(number) => write!(f, "{number}"),
            Self::Targets(targets) => write!(f, "{targets}"),
            Self::View(name) => f.write_str(name),
        }
    }
}

/// What the paper takes apart, as lists of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ablation {
    /// How slices become one vector.
    Pooling,
    /// Each backbone that there is.
    Backbone,
    /// Rank of the factors, 2 to 32.
    Rank,
    /// Where the factors sit.
    Targets,
    /// 20, 40, 60 and 100 % of the training volumes, of the method and of a 3D network.
    Data,
    /// 8 to 64 slices of a volume.
    Slices,
    /// With pixel supervision and without.
    Pixel,
    /// Each view alone.
    Views,
}

impl Ablation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pooling,
        Self::Backbone,
        Self::Rank,
        Self::Targets,
        Self::Data,
        Self::Slices,
        Self::Pixel,
        Self::Views,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pooling => "pooling",
            Self::Backbone => "backbone",
            Self::Rank => "rank",
            Self::Targets => "targets",
            Self::Data => "data",
            Self::Slices => "slices",
            Self::Pixel => "pixel",
            Self::Views => "views",
        }
    }

    /// The methods that are set side by side, as they are written: the method itself first. `backbones` and `views` are the names that
    /// there are.
    pub fn methods(self, backbones: &[&str], views: &[&str]) -> Vec<String> {
        let with =
            |changes: &[&str]| changes.iter().map(|change| format!("anymc3d{change}")).collect::<Vec<_>>();
        let more = match self {
            Self::Pooling => {
                return ["anymc3d", "lora-mean", "lora-median", "lora-lstm", "lora-transformer"]
                    .map(String::from)
                    .to_vec();
            }
            Self::Backbone => backbones.iter().map(|name| format!("anymc3d@{name}")).collect(),
            Self::Rank => with(&["+rank=2", "+rank=4", "+rank=16", "+rank=32"]),
            Self::Targets => {
                with(&["+targets=patch", "+targets=qkv", "+targets=output", "+targets=qkv.output"])
            }
            Self::Data => {
                let of = |base: &str| ["0.2", "0.4", "0.6"].map(|share| format!("{base}+data={share}"));
                let dense = Base::DenseNet121.name();
                [of("anymc3d").to_vec(), vec![dense.to_owned()], of(dense).to_vec()].concat()
            }
            Self::Slices => with(&["+slices=8", "+slices=16", "+slices=32", "+slices=64"]),
            Self::Pixel => with(&["+pixel=0", "+pixel=1"]),
            Self::Views => views.iter().map(|name| format!("anymc3d+view={name}")).collect(),
        };
        [vec!["anymc3d".to_owned()], more].concat()
    }
}

impl FromStr for Ablation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|one| one.name() == text);
        found.ok_or_else(|| format!("the ablation `{text}` is not known, expected one of {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Method;

    const TASK: &str = "name = 't'\nversion = '1.0.0'\nlabels = ['a']\n\
         recipe = { plane = 'axial', size = [28, 28], intensity = { kind = 'z-score' } }\n\
         [views.sag.recipe]\nplane = 'sagittal'\nsize = [42, 28]\nintensity = { kind = 'z-score' }\n\
         [views.ax]\n";

    fn changed(task: &str, method: &str) -> Result<Task, String> {
        let (mut task, method): (Task, Method) = (toml::from_str(task).unwrap(), method.parse().unwrap());
        method.changes.iter().try_for_each(|change| change.apply(&mut task))?;
        task.validate(14).map(|()| task)
    }

    #[test]
    fn changes_are_made_to_the_task() {
        let task = changed(TASK, "anymc3d+rank=4+targets=qkv.output+slices=7").unwrap();
        assert_eq!((task.lora.rank, task.lora.alpha), (4, 8.0));
        assert_eq!(task.lora.targets.to_string(), "qkv.output");
        for (_, recipe) in task.inputs() {
            assert_eq!(recipe.slices, SliceSelection::AtMost(7));
        }
        for (view, size) in [("sag", [42, 28]), ("ax", [28, 28])] {
            let task = changed(TASK, &format!("mst+view={view}")).unwrap();
            assert_eq!((task.recipe.size, task.views.len()), (size, 0));
        }
        let error = changed(TASK, "anymc3d+view=cor").unwrap_err();
        assert!(error.contains("no view cor") && error.contains("it has ax, sag"), "{error}");
        let plain = TASK.split("[views").next().unwrap();
        assert!(changed(plain, "anymc3d+view=ax").unwrap_err().contains("it has none"));
        let pixel = changed(plain, "anymc3d+pixel=0.5").unwrap().train.pixel;
        assert_eq!(pixel, Some(Pixel { weight: 0.5, ..Pixel::default() }));
        let masked = format!("{plain}[train.pixel]\nwidth = 8\n");
        assert_eq!(changed(&masked, "anymc3d+pixel=0").unwrap().train.pixel, None);
        assert_eq!(changed(&masked, "anymc3d+pixel=2").unwrap().train.pixel.unwrap().width, 8);
    }

    #[test]
    fn ablations_are_lists_of_methods() {
        for ablation in Ablation::ALL {
            assert_eq!(ablation.name().parse::<Ablation>(), Ok(ablation));
            let methods = ablation.methods(&["small", "base"], &["ax", "sag"]);
            assert!(methods.len() > 2 && methods[0] == "anymc3d", "{methods:?}");
            for method in &methods {
                assert_eq!(method.parse::<Method>().unwrap().to_string(), *method);
            }
        }
        assert!("size".parse::<Ablation>().unwrap_err().contains("expected one of pooling, backbone"));
    }
}
