//! The file and the environment, one over the other, as values by dotted path.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::schema::{Key, UNSET};
use super::value::{Raw, Value};

/// What begins the name of every environment variable that sets a key.
const PREFIX: &str = "SCANSIDE_";

pub(super) struct Layers {
    /// Set by file or environment, and not yet asked for.
    set: BTreeMap<String, (Raw, Origin)>,
    /// What has been asked for: as it stood, and where.
    taken: BTreeMap<&'static str, (String, Origin)>,
}

impl Layers {
    /// `keys` are those that there are; a table of another name is an unknown key.
    pub fn new(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        keys: &[Key],
    ) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            line: line(text, error.span().unwrap_or(0..0)),
            detail: error.message().replace('\n', ", "),
        })?;
        let mut layers = Self { set: BTreeMap::new(), taken: BTreeMap::new() };
        layers.flatten(text, "", table.get_ref());
        for (name, value) in environment {
            layers.environment(name, &value, keys)?;
        }
        match layers.set.iter().find(|(path, _)| !keys.iter().any(|key| key.path == **path)) {
            None => Ok(layers),
            Some((path, (_, origin))) => {
                let nearest = nearest(path, keys).0.into();
                Err(ConfigError::Unknown { origin: origin.clone(), key: path.clone(), nearest })
            }
        }
    }

    fn flatten(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = format!("{prefix}{}", name.get_ref());
            // [[task]] has its own types, and is read for itself.
            if path == super::TASKS && matches!(value.get_ref(), DeValue::Array(_)) {
                continue;
            }
            match value.get_ref() {
                DeValue::Table(inner) => self.flatten(text, &format!("{path}."), inner),
                other => {
                    let origin = Origin::Line(line(text, Spanned::span(name)));
                    self.set.insert(path, (Raw::of(other), origin));
                }
            }
        }
    }

    /// A variable whose name is no key is somebody else's, unless it has `__`, or is all but a key.
    fn environment(&mut self, name: String, value: &str, keys: &[Key]) -> Result<(), ConfigError> {
        let Some(rest) = name.strip_prefix(PREFIX) else { return Ok(()) };
        let path = rest.to_lowercase().replace("__", ".");
        let Some(key) = keys.iter().find(|key| key.path == path) else {
            let (nearest, distance) = nearest(&path, keys);
            if path.contains('.') || distance <= 2 {
                let (origin, nearest) = (Origin::Environment(name), nearest.into());
                return Err(ConfigError::Unknown { origin, key: path, nearest });
            }
            return Ok(());
        };
        // As in the file; a text may go without its quotes.
        let raw =
            Raw::parse(value).filter(|raw| (key.accepts)(raw)).unwrap_or_else(|| Raw::Text(value.into()));
        self.set.insert(path, (raw, Origin::Environment(name)));
        Ok(())
    }

    /// The value of `key` in the topmost layer that has it.
    pub fn take<T: Value>(&mut self, key: &'static Key) -> Result<T, ConfigError> {
        let (raw, origin) = match self.set.remove(key.path) {
            Some(found) => found,
            None if key.is_required() => {
                let example = format!("{} = {}", key.name(), key.example);
                return Err(ConfigError::Missing { key: key.path.into(), example });
            }
            None => (Raw::parse(key.default).unwrap_or(Raw::Other(key.default.into())), Origin::Default),
        };
        self.taken.insert(key.path, (raw.shown(), origin.clone()));
        if matches!(&raw, Raw::Other(text) if text == UNSET)
            && let Some(unset) = T::UNSET
        {
            return Ok(unset);
        }
        T::read(&raw).ok_or_else(|| ConfigError::Value {
            origin,
            key: key.path.into(),
            found: raw.shown(),
            expected: T::EXPECTED.into(),
        })
    }

    /// That the value of `path` is outside its range.
    pub fn value_error(&self, path: &'static str, expected: &str) -> ConfigError {
        let (found, origin) = self.taken.get(path).cloned().unwrap_or((String::new(), Origin::Default));
        ConfigError::Value { origin, key: path.into(), found, expected: expected.into() }
    }

    /// That `path` does not go together with another key.
    pub fn conflict(&self, path: &'static str, problem: &str) -> ConfigError {
        let origin = self.taken.get(path).map_or(Origin::Default, |(_, origin)| origin.clone());
        ConfigError::Conflict { origin, key: path.into(), problem: problem.into() }
    }
}

/// Counted from 1.
pub(super) fn line(text: &str, span: Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|&b| b == b'\n').count()
}

/// The key of the closest spelling, by its whole path or by its last part, and how many letters differ.
fn nearest(path: &str, keys: &[Key]) -> (&'static str, usize) {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |key: &&Key| {
        let whole = strsim::damerau_levenshtein(path, key.path);
        // The right name in the wrong section.
        let name = strsim::damerau_levenshtein(&last(path), &last(key.path)) + 1;
        whole.min(name)
    };
    keys.iter().map(|key| (key.path, distance(&key))).min_by_key(|(_, d)| *d).unwrap_or(("", usize::MAX))
}
