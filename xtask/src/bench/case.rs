//! What the encoder's bench times: a network, the size of its slices, and how many of them.

use std::str::FromStr;

/// One case, in one number of threads or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub model: Model,
    /// Height and width of a slice.
    pub size: usize,
    pub slices: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    VitS,
    VitB,
}

/// What is timed unless cases are named.
pub const CASES: [Case; 6] = [
    Case { model: Model::VitS, size: 224, slices: 1 },
    Case { model: Model::VitS, size: 224, slices: 64 },
    Case { model: Model::VitS, size: 224, slices: 240 },
    Case { model: Model::VitB, size: 224, slices: 1 },
    Case { model: Model::VitB, size: 224, slices: 64 },
    Case { model: Model::VitS, size: 448, slices: 1 },
];

impl Model {
    /// As flags and files have it.
    pub fn key(self) -> &'static str {
        match self {
            Self::VitS => "vit-s",
            Self::VitB => "vit-b",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::VitS => "ViT-S/14",
            Self::VitB => "ViT-B/14",
        }
    }
}

impl Case {
    pub fn title(&self) -> String {
        let plural = if self.slices == 1 { "" } else { "s" };
        format!("{} at {}, {} slice{plural}", self.model.title(), self.size, self.slices)
    }

    /// Turns, where none are asked for: runs of a single slice scatter most and cost least.
    pub fn turns(&self) -> u16 {
        match self.slices {
            ..8 => 24,
            8..100 => 6,
            _ => 3,
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is no case: expected MODEL:SIZE:SLICES, for example vit-s:224:64");
        let [model, size, slices] = text.split(':').collect::<Vec<_>>()[..] else { return Err(error()) };
        let model = [Model::VitS, Model::VitB].into_iter().find(|m| m.key() == model).ok_or_else(error)?;
        let number = |text: &str| text.parse().ok().filter(|n| *n > 0).ok_or_else(error);
        let case = Self { model, size: number(size)?, slices: number(slices)? };
        if !case.size.is_multiple_of(14) {
            return Err(format!("slices of {} pixels do not divide into patches of 14", case.size));
        }
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_as_they_are_documented() {
        assert_eq!("vit-s:224:64".parse(), Ok(CASES[1]));
        assert_eq!(CASES[3].title(), "ViT-B/14 at 224, 1 slice");
        assert!("vit-l:224:1".parse::<Case>().unwrap_err().contains("vit-s:224:64"));
        for bad in ["vit-s", "vit-s:224:0", "vit-s:200:1", "vit-s:224:1:1"] {
            assert!(bad.parse::<Case>().is_err(), "{bad}");
        }
    }
}
