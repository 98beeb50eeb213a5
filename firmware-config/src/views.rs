use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Invalid, Manifest, Recipe};

/// One of several inputs of a task, such as the sagittal and the coronal series of a study, or T1 and FLAIR. Each has factors and
/// a query of its own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Preprocessing of this view. Default: the task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

/// What is done where not every view of a task is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingViews {
    /// Nothing is classified.
    #[default]
    Refuse,
    /// The views that are there are pooled; at least one.
    Pool,
}

impl MissingViews {
    /// Whether it is what is done unless said otherwise.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks the names of views, and their recipes.
pub fn validate_views(views: &BTreeMap<String, View>, missing: MissingViews) -> Result<(), Invalid> {
    if views.len() == 1 {
        let expected = "two views or more; a task of one view has none that is named";
        return Err(Invalid::new("views", "one", expected));
    }
    if views.is_empty() && missing == MissingViews::Pool {
        return Err(Invalid::new("missing_views", "pool", "left out where there are no views"));
    }
    for (name, view) in views {
        let place = format!("views.{name}");
        check_view_name(&place, name)?;
        if let Some(recipe) = &view.recipe {
            recipe.validate().map_err(|e| Invalid { field: format!("{place}.{}", e.field), ..e })?;
        }
    }
    Ok(())
}

/// Checks a view's name, which stands in tensor, file and column names.
pub(crate) fn check_view_name(place: &str, name: &str) -> Result<(), Invalid> {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(sound) {
        let expected = "a name of lower-case letters, digits, dashes and underscores";
        return Err(Invalid::new(place, format!("named \"{}\"", name.escape_debug()), expected));
    }
    Ok(())
}

/// What a task looks at, in the order of its graph's inputs: each view's name and recipe, by name; one without a name where the
/// task has no views. `recipe` is that of views which have none of their own.
pub fn inputs<'a>(
    recipe: &'a Recipe,
    views: &'a BTreeMap<String, View>,
) -> Vec<(Option<&'a str>, &'a Recipe)> {
    if views.is_empty() {
        return vec![(None, recipe)];
    }
    views.iter().map(|(name, view)| (Some(name.as_str()), view.recipe.as_ref().unwrap_or(recipe))).collect()
}

impl Manifest {
    /// See [`inputs`].
    pub fn inputs(&self) -> Vec<(Option<&str>, &Recipe)> {
        inputs(&self.recipe, &self.views)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(toml: &str, missing: MissingViews) -> String {
        let views: BTreeMap<String, View> = toml::from_str(toml).unwrap();
        validate_views(&views, missing).err().map_or("sound".into(), |e| e.to_string())
    }

    #[test]
    fn views_are_none_or_several_with_plain_names() {
        use MissingViews::{Pool, Refuse};
        assert_eq!(found("", Refuse), "sound");
        assert_eq!(found("[t1]\n[flair-2d]", Pool), "sound");
        for (toml, missing, told) in [
            ("[t1]", Refuse, "views is one"),
            ("", Pool, "missing_views is pool"),
            ("[T1]\n[flair]", Refuse, "views.T1 is named \"T1\""),
            (
                "[a]\n[b]\nrecipe = { plane = 'axial', size = [0, 14], intensity = { kind = 'z-score' } }",
                Refuse,
                "views.b.recipe.size is [0, 14]",
            ),
        ] {
            assert!(found(toml, missing).starts_with(told), "{}", found(toml, missing));
        }
    }
}
