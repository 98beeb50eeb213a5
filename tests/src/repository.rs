//! A signed repository of which every part can be made wrong: what an attacker would serve.
//!
//! It writes TUF metadata by hand, so that the tests of the device do not lean on the tool that operators use.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use firmware_config::{Desired, TargetRef};
use olpc_cjson::CanonicalFormatter;
use runtime::tensor::sha256;
use serde::Serialize;
use serde_json::{Value, json};

/// A key pair made of one byte, so that every run has the same keys.
pub struct Key(Ed25519KeyPair);

impl Key {
    /// The key of this byte.
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed.
    pub fn of(byte: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).expect("32 bytes"))
    }

    fn public(&self) -> Value {
        let public = hex(self.0.public_key().as_ref());
        json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } })
    }

    /// SHA-256 of the public key's canonical JSON.
    pub fn id(&self) -> String {
        sha256(&canonical(&self.public()))
    }

    fn sign(&self, signed: &Value) -> Value {
        let signature = hex(self.0.sign(&canonical(signed)).as_ref());
        json!({ "keyid": self.id(), "sig": signature })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Canonical JSON, as TUF signs it.
///
/// # Panics
/// Never: a value serialises.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, CanonicalFormatter::new());
    value.serialize(&mut serializer).expect("a value serialises");
    bytes
}

/// `signed` with the signatures of `keys`.
pub fn envelope(signed: &Value, keys: &[&Key]) -> Vec<u8> {
    let signatures: Vec<Value> = keys.iter().map(|key| key.sign(signed)).collect();
    serde_json::to_vec(&json!({ "signed": signed, "signatures": signatures })).unwrap_or_default()
}

/// A desired state signed by `keys`.
pub fn desire(desired: &Desired, keys: &[&Key]) -> Vec<u8> {
    envelope(&serde_json::to_value(desired).unwrap_or_default(), keys)
}

/// A repository with one site, `north`; all its fields may be changed before it is written.
pub struct Repository {
    /// Root keys; two of them sign.
    pub root: [Key; 3],
    /// How many of the root keys sign.
    pub root_signatures: usize,
    /// Key of the targets role.
    pub targets_key: Key,
    /// Key of the snapshot role.
    pub snapshot_key: Key,
    /// Key of the timestamp role.
    pub timestamp_key: Key,
    /// Key of the site's role, as the targets role names it.
    pub site_key: Key,
    /// The key that signs the site's metadata, where it is another one.
    pub site_signer: Option<Key>,
    /// Versions: root, targets, snapshot, timestamp, site.
    pub versions: [u64; 5],
    /// Expiry of each, in the same order.
    pub expires: [String; 5],
    /// Files of the site, by name without `north/`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Backbones, by name without `backbones/`.
    pub backbones: BTreeMap<String, Vec<u8>>,
    /// Leaves the site out of the snapshot.
    pub hide_site: bool,
    /// Spaces at the end of the timestamp's file.
    pub padding: usize,
}

/// An instant that no test reaches.
pub const FAR: &str = "2099-01-01T00:00:00Z";

impl Default for Repository {
    fn default() -> Self {
        Self {
            root: [Key::of(1), Key::of(2), Key::of(3)],
            root_signatures: 2,
            targets_key: Key::of(4),
            snapshot_key: Key::of(5),
            timestamp_key: Key::of(6),
            site_key: Key::of(7),
            site_signer: None,
            versions: [1; 5],
            expires: [FAR; 5].map(Into::into),
            files: BTreeMap::new(),
            backbones: BTreeMap::new(),
            hide_site: false,
            padding: 0,
        }
    }
}

impl Repository {
    /// Counts everything but the root up, as a release does.
    pub fn release(&mut self) {
        for version in &mut self.versions[1..] {
            *version += 1;
        }
    }

    /// A file as signed metadata names it.
    ///
    /// # Panics
    /// Where there is no such file.
    pub fn target(&self, name: &str) -> TargetRef {
        let bytes = &self.files[name];
        TargetRef { name: format!("north/{name}"), length: bytes.len() as u64, sha256: sha256(bytes) }
    }

    /// The root's file.
    pub fn root_json(&self) -> Vec<u8> {
        let role = |keys: &[&Key], threshold: u32| {
            let ids: Vec<String> = keys.iter().map(|key| key.id()).collect();
            json!({ "keyids": ids, "threshold": threshold })
        };
        let [a, b, c] = &self.root;
        let all = [a, b, c, &self.targets_key, &self.snapshot_key, &self.timestamp_key];
        let keys: BTreeMap<String, Value> = all.iter().map(|key| (key.id(), key.public())).collect();
        let signed = json!({
            "_type": "root", "spec_version": "1.0.0", "consistent_snapshot": true,
            "version": self.versions[0], "expires": self.expires[0], "keys": keys,
            "roles": {
                "root": role(&[a, b, c], 2),
                "targets": role(&[&self.targets_key], 1),
                "snapshot": role(&[&self.snapshot_key], 1),
                "timestamp": role(&[&self.timestamp_key], 1),
            },
        });
        envelope(&signed, &[a, b, c][..self.root_signatures])
    }

    /// Writes `metadata` and `targets` into `folder`, over what stands there; older versions stay beside the new ones.
    ///
    /// # Panics
    /// Where the disk fails.
    pub fn write(&self, folder: &Path) {
        let [root, targets, snapshot, _, site] = self.versions;
        let metadata = folder.join("metadata");
        fs::create_dir_all(&metadata).expect("a folder");
        let put = |name: &str, bytes: &[u8]| fs::write(metadata.join(name), bytes).expect("a file");
        put(&format!("{root}.root.json"), &self.root_json());

        let put_targets = |of: &str, files: &BTreeMap<String, Vec<u8>>| {
            let mut listed = BTreeMap::new();
            for (name, bytes) in files {
                let sha256 = sha256(bytes);
                let target = json!({ "length": bytes.len(), "hashes": { "sha256": sha256 } });
                listed.insert(format!("{of}/{name}"), target);
                let place = folder.join("targets").join(of).join(format!("{sha256}.{name}"));
                fs::create_dir_all(place.parent().expect("a folder above")).expect("a folder");
                fs::write(place, bytes).expect("a file");
            }
            listed
        };
        let (listed, backbones) =
            (put_targets("north", &self.files), put_targets("backbones", &self.backbones));
        let role = |kind: &str, index: usize, more: Value| {
            let mut signed = json!({
                "_type": kind, "spec_version": "1.0.0",
                "version": self.versions[index], "expires": self.expires[index],
            });
            for (key, value) in more.as_object().into_iter().flatten() {
                signed[key] = value.clone();
            }
            signed
        };
        let pinned = |version: u64, bytes: &[u8]| json!({ "version": version, "length": bytes.len(), "hashes": { "sha256": sha256(bytes) } });

        let signer = self.site_signer.as_ref().unwrap_or(&self.site_key);
        let site_json = envelope(&role("targets", 4, json!({ "targets": listed })), &[signer]);
        put(&format!("{site}.north.json"), &site_json);
        let delegated = json!({
            "name": "north", "keyids": [self.site_key.id()], "threshold": 1, "paths": ["north/*"], "terminating": true,
        });
        let keys: BTreeMap<String, Value> = [(self.site_key.id(), self.site_key.public())].into();
        let delegations =
            json!({ "targets": backbones, "delegations": { "keys": keys, "roles": [delegated] } });
        let targets_json = envelope(&role("targets", 1, delegations), &[&self.targets_key]);
        put(&format!("{targets}.targets.json"), &targets_json);
        let mut meta = json!({ "targets.json": pinned(targets, &targets_json) });
        if !self.hide_site {
            meta["north.json"] = pinned(site, &site_json);
        }
        let snapshot_json = envelope(&role("snapshot", 2, json!({ "meta": meta })), &[&self.snapshot_key]);
        put(&format!("{snapshot}.snapshot.json"), &snapshot_json);
        let meta = json!({ "meta": { "snapshot.json": pinned(snapshot, &snapshot_json) } });
        let mut timestamp_json = envelope(&role("timestamp", 3, meta), &[&self.timestamp_key]);
        timestamp_json.extend(std::iter::repeat_n(b' ', self.padding));
        put("timestamp.json", &timestamp_json);
    }
}
