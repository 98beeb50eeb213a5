//! An operator's desk: a folder in which `scanside-fleet` has its keys and its repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use firmware_config::TargetRef;
use runtime::tensor::sha256;
use tempfile::TempDir;
use tough::{FilesystemTransport, RepositoryLoader};
use url::Url;

use crate::programs::{Outcome, operator, run};

/// See the module's description.
pub struct Desk(TempDir);

impl Default for Desk {
    /// A repository with the site `north`.
    fn default() -> Self {
        let desk = Self::empty();
        desk.done(&["init"]);
        desk.done(&["key", "add-site", "north"]);
        desk
    }
}

impl Desk {
    /// Without keys and repository.
    ///
    /// # Panics
    /// Where the disk fails.
    pub fn empty() -> Self {
        Self(tempfile::tempdir().expect("a folder for temporary files"))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the tool.
    pub fn run(&self, words: &[&str]) -> Outcome {
        run(operator().current_dir(self.0.path()).args(words))
    }

    /// Runs the tool, which must succeed.
    ///
    /// # Panics
    /// Where it does not.
    pub fn done(&self, words: &[&str]) -> Outcome {
        let outcome = self.run(words);
        assert_eq!(outcome.code, Some(0), "{words:?}: {outcome:?}");
        outcome
    }

    /// The repository as a client that was given the first root sees it.
    ///
    /// # Panics
    /// Where a client would refuse it.
    pub fn load(&self) -> tough::Repository {
        let url = |name: &str| {
            Url::from_directory_path(self.path("repository").join(name)).expect("an absolute path")
        };
        let root = fs::read(self.path("keys/root.json")).expect("a root");
        let loader =
            RepositoryLoader::new(&root, url("metadata"), url("targets")).transport(FilesystemTransport);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(loader.load()).expect("a sound repository")
    }

    /// The targets by name, with their files checked.
    ///
    /// # Panics
    /// Where a client would refuse the repository, or a file is not the signed one.
    pub fn targets(&self) -> BTreeMap<String, TargetRef> {
        let repository = self.load();
        let checked = repository.all_targets().map(|(name, target)| {
            let name = name.resolved().to_owned();
            let sha = target.hashes.sha256.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat();
            let (folder, file) = name.rsplit_once('/').expect("a folder");
            let path = self.path(&format!("repository/targets/{folder}/{sha}.{file}"));
            let bytes = fs::read(path).expect("a target's file");
            assert_eq!((bytes.len() as u64, sha256(&bytes)), (target.length, sha.clone()));
            (name.clone(), TargetRef { name, length: target.length, sha256: sha })
        });
        checked.collect()
    }
}
