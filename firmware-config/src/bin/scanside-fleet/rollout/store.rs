//! Rollouts as signed files in the repository, `rollouts/NAME.json`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tough::schema::Signed;

use super::{Rollout, SCHEMA, plan};
use crate::envelope::{check, seal, to_bytes};
use crate::error::{Result, file, input, malformed};
use crate::files;
use crate::keys::{KeyPair, Keyring};
use crate::repository::Repository;

/// Checks a new rollout's name: it is a file's.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(input(format!(
            "the rollout's name is {name:?}, expected 1 to 64 letters, digits, '-', '_' and '.', not beginning with '.'"
        )));
    }
    Ok(())
}

fn path(repository: &Repository, name: &str) -> PathBuf {
    repository.folder().join("rollouts").join(format!("{name}.json"))
}

/// The names of all rollouts.
pub fn list(repository: &Repository) -> Result<Vec<String>> {
    let folder = repository.folder().join("rollouts");
    let mut names = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(&folder).map_err(file(&folder))? {
            let name = entry.map_err(file(&folder))?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".json").filter(|name| !name.starts_with('.')) {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A rollout that the keys of all its sites vouch for; none of that name is there.
pub fn load(repository: &Repository, name: &str) -> Result<Option<Rollout>> {
    check_name(name)?;
    let path = path(repository, name);
    let Some(bytes) = files::read_if_there(&path)? else { return Ok(None) };
    let wrong = |detail: String| malformed(&path, detail, "a rollout that its sites' keys have signed");
    let envelope: Signed<Value> =
        serde_json::from_slice(&bytes).map_err(|e| wrong(format!("no signed JSON ({e})")))?;
    // Looked into before it is verified only to learn whose signatures it needs.
    let rollout: Rollout =
        serde_json::from_value(envelope.signed.clone()).map_err(|e| wrong(format!("no rollout ({e})")))?;
    for site in sites(&rollout) {
        check(&envelope, &repository.delegations(), &site).map_err(wrong)?;
    }
    if rollout.schema != SCHEMA || rollout.name != name || rollout.waves.is_empty() {
        return Err(wrong("another rollout".into()));
    }
    plan::distinct(&rollout.waves).map_err(wrong)?;
    Ok(Some(rollout))
}

/// Writes a rollout, signed by the keys of all its sites.
pub fn save(repository: &Repository, rollout: &Rollout, keys: &Keyring) -> Result<()> {
    let mut signers: Vec<&KeyPair> = Vec::new();
    for site in sites(rollout) {
        let (ids, threshold) = repository.site_keys(&site)?;
        signers.extend(keys.of(&site, &ids, threshold)?);
    }
    files::write(&path(repository, &rollout.name), &to_bytes(&seal(rollout, &signers)))
}

fn sites(rollout: &Rollout) -> BTreeSet<String> {
    rollout.all().map(|device| device.site.to_string()).collect()
}
