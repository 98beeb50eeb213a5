use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where factors are learned. The others stay what they start as, and so change nothing: their B is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Targets([bool; 3]);

/// As a task file and a factor's name have them.
const NAMES: [&str; 3] = ["patch", "qkv", "output"];

impl Targets {
    /// The patch embedding, query, key and value, and the projection of attention's output: what the paper adapts.
    pub const ALL: Self = Self([true; 3]);

    /// Whether these are all.
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    /// Whether the parameter `name` is learned; what is no factor is.
    pub fn contain(self, name: &str) -> bool {
        let Some((_, factor)) = name.split_once("lora.") else { return true };
        let [patch, qkv, output] = self.0;
        match factor.split('.').rev().nth(1) {
            Some("patch") => patch,
            Some("o") => output,
            _ => qkv,
        }
    }

    fn of<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self, String> {
        let mut found = [false; 3];
        for name in names {
            let name = name.as_ref();
            let place = NAMES.iter().position(|known| *known == name).filter(|&place| !found[place]);
            let wrong =
                || format!("lora.targets has \"{name}\", but must be of {}, each once", NAMES.join(", "));
            found[place.ok_or_else(wrong)?] = true;
        }
        if found == [false; 3] {
            return Err(format!("lora.targets is empty, but must be at least one of {}", NAMES.join(", ")));
        }
        Ok(Self(found))
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.into_iter().zip(self.0).filter(|(_, there)| *there).map(|(name, _)| name)
    }
}

impl Default for Targets {
    fn default() -> Self {
        Self::ALL
    }
}

impl TryFrom<Vec<String>> for Targets {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        Self::of(names)
    }
}

impl From<Targets> for Vec<String> {
    fn from(targets: Targets) -> Self {
        targets.names().map(String::from).collect()
    }
}

impl FromStr for Targets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::of(text.split('.'))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_by_the_factors_names() {
        let targets: Targets = "patch.output".parse().unwrap();
        for (name, there) in [
            ("lora.patch.A", true),
            ("lora.blocks.3.qkv.B", false),
            ("views.sag.lora.blocks.3.q.A", false),
            ("lora.blocks.11.o.B", true),
            ("views.sag.lora.patch.B", true),
            ("query", true),
            ("head.weight", true),
        ] {
            assert_eq!(targets.contain(name), there, "{name}");
            assert!(Targets::ALL.contain(name));
        }
        assert_eq!(targets.to_string(), "patch.output");
        for bad in ["", "mlp", "patch.patch"] {
            assert!(bad.parse::<Targets>().unwrap_err().contains("patch, qkv, output"), "{bad}");
        }
        assert!(Targets::try_from(Vec::new()).unwrap_err().contains("empty"));
    }
}
