//! `[[task]]`: which series go to which task, a table a task.

use toml::de::DeTable;
use toml::{Table, Value};

use super::TASKS;
use super::error::{ConfigError, Origin};
use super::layers::line;
use crate::{Rules, Task};

/// The rules of one task on this device.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRules {
    /// The task's name, as in its plugin.
    pub name: String,
    /// What a series must be like.
    pub rules: Rules,
}

/// Every `[[task]]` table of a file that is known to be TOML.
pub(super) fn read(text: &str) -> Result<Vec<TaskRules>, ConfigError> {
    let (Ok(spans), Ok(mut values)) = (DeTable::parse(text), text.parse::<Table>()) else {
        return Ok(Vec::new());
    };
    let Some(Value::Array(tables)) = values.remove(TASKS) else { return Ok(Vec::new()) };
    let places = spans.get_ref().get(TASKS).and_then(|value| value.get_ref().as_array());
    let mut lines = places.into_iter().flatten().map(|table| line(text, table.span()));
    let mut all: Vec<TaskRules> = Vec::new();
    for table in tables {
        let line = lines.next().unwrap_or(1);
        let task = one(table, line)?;
        if all.iter().any(|other| other.name == task.name) {
            let detail =
                format!("the task {:?} has two [[task]] tables; put all its rules into one", task.name);
            return Err(ConfigError::Task { line, detail });
        }
        all.push(task);
    }
    Ok(all)
}

fn one(table: Value, line: usize) -> Result<TaskRules, ConfigError> {
    let wrong = |detail: String| ConfigError::Task { line, detail: detail.replace('\n', ", ") };
    let Value::Table(mut table) = table else {
        return Err(wrong("`task` holds something else than tables; write [[task]]".into()));
    };
    let name = match table.remove("name") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(wrong(format!("`task.name` is {other}, expected a text"))),
        None => {
            return Err(wrong("`task.name` is missing; give it, for example name = \"hemorrhage\"".into()));
        }
    };
    // The version is the plugin's to say.
    let sound = Task { name: name.clone(), version: "0.0.0".into() }.validate();
    sound.map_err(|error| wrong(error.to_string()))?;
    let place = format!("{TASKS}.{name}");
    let rules: Rules = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        unknown(error.message(), &place, line)
            .unwrap_or_else(|| wrong(format!("`{place}`: {}", error.message())))
    })?;
    rules.validate(&place).map_err(|error| wrong(error.to_string()))?;
    Ok(TaskRules { name, rules })
}

/// serde's "unknown field `x`, expected one of `a`, `b`" as the nearest key.
fn unknown(message: &str, place: &str, line: usize) -> Option<ConfigError> {
    let mut names = message.strip_prefix("unknown field")?.split('`').skip(1).step_by(2);
    let found = names.next()?;
    let nearest = names.chain(["name"]).min_by_key(|name| strsim::damerau_levenshtein(found, name))?;
    let at = |key: &str| format!("{place}.{key}");
    Some(ConfigError::Unknown { origin: Origin::Line(line), key: at(found), nearest: at(nearest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_in_order() {
        let text = "[[task]]\nname = \"bleed\"\nmodality = [\"CT\"]\nmin_slices = 20\n[[task]]\nname = \"stroke\"\n\
                    [task.views.axial]\nplane = [\"axial\"]\n";
        let all = read(text).unwrap();
        assert_eq!(all.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["bleed", "stroke"]);
        assert_eq!(all[0].rules.min_slices, Some(20));
        assert!(all[1].rules.views.contains_key("axial"));
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (text, sentence) in [
            (
                "[[task]]\nname = \"a\"\n[[task]]\nname = \"b\"\nmodalty = [\"CT\"]",
                "line 3: there is no key `task.b.modalty`; the nearest is `task.b.modality`",
            ),
            ("\n[[task]]\nmodality = [\"CT\"]", "line 2: `task.name` is missing"),
            ("[[task]]\nname = 7", "line 1: `task.name` is 7, expected a text"),
            ("[[task]]\nname = \"A B\"", "line 1: task.name is A B, but must be"),
            ("[[task]]\nname = \"a\"\nmin_slices = \"x\"", "line 1: `task.a`: invalid type"),
            ("[[task]]\nname = \"a\"\nmin_slices = 5\nmax_slices = 4", "line 1: task.a.max_slices is 4"),
            (
                "[[task]]\nname = \"a\"\n[[task]]\nname = \"a\"",
                "line 3: the task \"a\" has two [[task]] tables",
            ),
            ("task = [1]", "line 1: `task` holds something else"),
        ] {
            let found = read(text).unwrap_err().to_string();
            assert!(found.starts_with(sentence) && !found.contains('\n'), "{text}: {found}");
        }
    }
}
