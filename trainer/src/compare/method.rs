use std::fmt;
use std::str::FromStr;

use super::Change;
use crate::model::Pooling;
use crate::rival::Method as Rival;

/// What is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Base {
    /// LoRA and a query: the method itself.
    AnyMc3d,
    /// The same factors, slices pooled by their mean.
    LoraMean,
    /// By their median.
    LoraMedian,
    /// By an LSTM.
    LoraLstm,
    /// By a Transformer layer.
    LoraTransformer,
    /// On three orthogonal slices.
    ThreePlanes,
    /// The frozen backbone, mean over slices, a linear head.
    ProbeMean,
    /// With the median over slices.
    ProbeMedian,
    /// Medical Slice Transformer.
    Mst,
    /// CNN on slices and their neighbours, LSTM over the slices.
    CnnBilstm,
    /// 3D DenseNet-121.
    DenseNet121,
    /// 3D ResNet-18.
    ResNet18,
    /// 3D ResNet-50.
    ResNet50,
    /// 3D ResNet-50 from MedicalNet's weights.
    MedicalNet,
    /// Swin UNETR from VoCo's weights.
    Voco,
}

/// The ways to make a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// LoRA on the frozen backbone.
    Lora(Pooling),
    /// A head on frozen embeddings.
    Probe(Pooling),
    /// A network that is fitted whole.
    Whole(Rival),
}

impl Base {
    /// All, in the order of the table.
    pub const ALL: [Self; 15] = [
        Self::AnyMc3d,
        Self::LoraMean,
        Self::LoraMedian,
        Self::LoraLstm,
        Self::LoraTransformer,
        Self::ThreePlanes,
        Self::ProbeMean,
        Self::ProbeMedian,
        Self::Mst,
        Self::CnnBilstm,
        Self::DenseNet121,
        Self::ResNet18,
        Self::ResNet50,
        Self::MedicalNet,
        Self::Voco,
    ];

    /// As flags, folders and tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AnyMc3d => "anymc3d",
            Self::LoraMean => "lora-mean",
            Self::LoraMedian => "lora-median",
            Self::LoraLstm => "lora-lstm",
            Self::LoraTransformer => "lora-transformer",
            Self::ThreePlanes => "three-planes",
            Self::ProbeMean => "probe-mean",
            Self::ProbeMedian => "probe-median",
            Self::MedicalNet => "medicalnet",
            Self::Mst => Rival::Mst.name(),
            Self::CnnBilstm => Rival::SliceCnn.name(),
            Self::DenseNet121 => Rival::DenseNet121.name(),
            Self::ResNet18 => Rival::ResNet18.name(),
            Self::ResNet50 => Rival::ResNet50.name(),
            Self::Voco => Rival::Voco.name(),
        }
    }

    /// What it is, for the table's reader.
    pub fn description(self) -> &'static str {
        match self {
            Self::AnyMc3d => "LoRA on the frozen backbone, slices pooled by one learned query",
            Self::LoraMean => "the same LoRA, mean over slices",
            Self::LoraMedian => "the same LoRA, median over slices",
            Self::LoraLstm => "the same LoRA, bidirectional LSTM over slices",
            Self::LoraTransformer => "the same LoRA, a Transformer layer over slices",
            Self::ThreePlanes => "the same LoRA on three orthogonal slices through the middle, their mean",
            Self::ProbeMean => "frozen backbone, mean over slices, logistic head",
            Self::ProbeMedian => "frozen backbone, median over slices, logistic head",
            Self::MedicalNet => {
                "3D ResNet-50 from MedicalNet's weights, which the user supplies, fine-tuned whole"
            }
            Self::Mst => Rival::Mst.description(),
            Self::CnnBilstm => Rival::SliceCnn.description(),
            Self::DenseNet121 => Rival::DenseNet121.description(),
            Self::ResNet18 => Rival::ResNet18.description(),
            Self::ResNet50 => Rival::ResNet50.description(),
            Self::Voco => Rival::Voco.description(),
        }
    }

    /// How it is made.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::AnyMc3d => Kind::Lora(Pooling::Query),
            Self::LoraMean => Kind::Lora(Pooling::Mean),
            Self::LoraMedian => Kind::Lora(Pooling::Median),
            Self::LoraLstm => Kind::Lora(Pooling::Lstm),
            Self::LoraTransformer => Kind::Lora(Pooling::Transformer),
            Self::ThreePlanes => Kind::Lora(Pooling::ThreePlanes),
            Self::ProbeMean => Kind::Probe(Pooling::Mean),
            Self::ProbeMedian => Kind::Probe(Pooling::Median),
            Self::Mst => Kind::Whole(Rival::Mst),
            Self::CnnBilstm => Kind::Whole(Rival::SliceCnn),
            Self::DenseNet121 => Kind::Whole(Rival::DenseNet121),
            Self::ResNet18 => Kind::Whole(Rival::ResNet18),
            Self::ResNet50 | Self::MedicalNet => Kind::Whole(Rival::ResNet50),
            Self::Voco => Kind::Whole(Rival::Voco),
        }
    }

    /// Whether the backbone's weights stay as they are, so that tasks can share them.
    pub fn is_frozen(self) -> bool {
        !matches!(self.kind(), Kind::Whole(_))
    }

    /// Whether it is fitted on a backbone.
    pub fn needs_backbone(self) -> bool {
        match self.kind() {
            Kind::Lora(_) | Kind::Probe(_) => true,
            Kind::Whole(method) => method.needs_backbone(),
        }
    }

    /// Whether it starts from weights that were published with it.
    pub fn needs_weights(self) -> bool {
        matches!(self, Self::MedicalNet | Self::Voco)
    }

    /// Whether nothing about it depends on a seed.
    pub fn is_seedless(self) -> bool {
        matches!(self.kind(), Kind::Probe(_))
    }

    /// Whether it takes several views of a study.
    pub fn takes_views(self) -> bool {
        matches!(self.kind(), Kind::Lora(Pooling::Query) | Kind::Probe(_))
    }
}

/// A row of the table: `BASE[@BACKBONE][+KEY=VALUE]…`, as `anymc3d@dinov2-small+rank=4` or `probe-mean+data=0.2`.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// What is fitted.
    pub base: Base,
    /// On which of the comparison's backbones; the first where none is named.
    pub backbone: Option<String>,
    /// In what it differs from the task as it is.
    pub changes: Vec<Change>,
}

impl Method {
    /// Share of the training volumes.
    pub fn share(&self) -> f64 {
        let share = |change: &Change| if let Change::Data(share) = change { Some(*share) } else { None };
        self.changes.iter().find_map(share).unwrap_or(1.0)
    }

    /// The one view that it takes of a task of several.
    pub fn view(&self) -> Option<&str> {
        self.changes
            .iter()
            .find_map(|change| if let Change::View(name) = change { Some(name.as_str()) } else { None })
    }
}

impl From<Base> for Method {
    fn from(base: Base) -> Self {
        Self { base, backbone: None, changes: Vec::new() }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.name())?;
        if let Some(backbone) = &self.backbone {
            write!(f, "@{backbone}")?;
        }
        self.changes.iter().try_for_each(|change| change.fmt(f))
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('+');
        let first = parts.next().unwrap_or_default();
        let (base, backbone) = match first.split_once('@') {
            Some((base, backbone)) => (base, Some(backbone)),
            None => (first, None),
        };
        let known = || Base::ALL.map(Base::name).join(", ");
        let base = Base::ALL.into_iter().find(|known| known.name() == base);
        let base =
            base.ok_or_else(|| format!("the method `{text}` is not known, expected one of {}", known()))?;
        let word = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if let Some(name) = backbone.filter(|name| !word(name)) {
            return Err(format!(
                "the method `{text}` names the backbone `{name}`, expected letters, digits, - and _"
            ));
        }
        if backbone.is_some() && !base.needs_backbone() {
            return Err(format!("the method `{text}` takes no backbone, expected {}", base.name()));
        }
        let changes = Change::all(text, base, parts)?;
        Ok(Self { base, backbone: backbone.map(Into::into), changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_read_as_it_is_written() {
        for text in [
            "anymc3d",
            "lora-lstm@dinov2-small",
            "anymc3d@b+data=0.2+rank=4",
            "probe-mean+data=1",
            "anymc3d+pixel=0+targets=patch.output",
            "resnet18-3d+view=sagittal+slices=16",
        ] {
            assert_eq!(text.parse::<Method>().unwrap().to_string(), text);
        }
        for base in Base::ALL {
            assert_eq!(base.name().parse::<Method>().unwrap().base, base);
        }
        for (text, told) in [
            ("anymc2d", "anymc2d"),
            ("anymc3d@", "names the backbone ``"),
            ("anymc3d@../x", "../x"),
            ("anymc3d+data=0", "+data=0"),
            ("anymc3d+data=1.5", "+data=1.5"),
            ("anymc3d+rank", "+rank"),
            ("probe-mean+rank=4", "+rank=4"),
            ("anymc3d+size=3", "+size=3"),
            ("mst+rank=4", "+rank=4"),
            ("anymc3d+rank=4+rank=8", "+rank=8"),
            ("mst+pixel=1", "+pixel=1"),
            ("three-planes+pixel=1", "+pixel=1"),
            ("anymc3d+targets=mlp", "+targets=mlp"),
            ("anymc3d+slices=0", "+slices=0"),
            ("anymc3d+view=", "+view="),
            ("resnet18-3d@b", "takes no backbone"),
        ] {
            let error = text.parse::<Method>().unwrap_err();
            assert!(error.contains(told) && error.contains("expected"), "{error}");
        }
    }
}
