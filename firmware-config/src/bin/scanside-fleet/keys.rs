//! Ed25519 keys as files: PKCS#8 in PEM, readable by their owner alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::Sign;

use crate::error::{Result, file, input, machine, malformed};
use crate::files;

/// What PEM calls a PKCS#8 key.
const TAG: &str = "PRIVATE KEY";

/// A private key with its public half.
pub struct KeyPair {
    secret: Ed25519KeyPair,
    public: Key,
    id: Decoded<Hex>,
}

impl KeyPair {
    /// A new one, from the operating system's randomness.
    pub fn generate() -> Result<Self> {
        let secret =
            Ed25519KeyPair::generate().map_err(|_| machine("no key could be made: no randomness"))?;
        Ok(Self::new(secret))
    }

    fn new(secret: Ed25519KeyPair) -> Self {
        let public = secret.tuf_key();
        let id = public.key_id().expect("a key serialises");
        Self { secret, public, id }
    }

    /// Its id in metadata, 64 hexadecimal digits.
    pub fn id(&self) -> String {
        hex(&self.id)
    }

    /// As [`Self::id`], in TUF's type.
    pub fn tuf_id(&self) -> Decoded<Hex> {
        self.id.clone()
    }

    /// The public half as it stands in metadata.
    pub fn public(&self) -> &Key {
        &self.public
    }

    /// The signature of a message.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.secret.sign(message).as_ref().to_vec()
    }

    /// Writes the private key into a folder, as `OWNER-FIRST8.pem`; returns the file.
    pub fn save(&self, folder: &Path, owner: &str) -> Result<PathBuf> {
        let der = self.secret.to_pkcs8v1().map_err(|_| machine("a key could not be written as PKCS#8"))?;
        let pem = pem::encode(&pem::Pem::new(TAG, der.as_ref().to_vec()));
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(file(folder))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(file(folder))?;
        }
        let path = folder.join(format!("{owner}-{}.pem", short(&self.id())));
        files::write_secret(&path, pem.as_bytes())?;
        Ok(path)
    }

    fn read(path: &Path) -> Result<Self> {
        let mode = fs::metadata(path).map_err(file(path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(input(format!(
                "{} holds a private key and can be read by others: take that right away with chmod 600",
                path.display()
            )));
        }
        let expected = "an Ed25519 key as PKCS#8 in PEM";
        let pem = pem::parse(files::read(path)?).map_err(|error| malformed(path, error, expected))?;
        let secret = Ed25519KeyPair::from_pkcs8(pem.contents());
        let secret = secret.map_err(|error| malformed(path, error, expected))?;
        Ok(Self::new(secret))
    }
}

/// The private keys at hand, by id.
#[derive(Default)]
pub struct Keyring {
    keys: BTreeMap<String, (KeyPair, PathBuf)>,
}

impl Keyring {
    /// Reads every `*.pem` of the folders, and the files; a folder may be absent.
    pub fn read(places: &[PathBuf]) -> Result<Self> {
        let mut ring = Self::default();
        for place in places {
            if place.is_dir() {
                for entry in fs::read_dir(place).map_err(file(place))? {
                    let path = entry.map_err(file(place))?.path();
                    if path.extension().is_some_and(|e| e == "pem") {
                        ring.insert(KeyPair::read(&path)?, path);
                    }
                }
            } else if place.exists() {
                ring.insert(KeyPair::read(place)?, place.clone());
            }
        }
        Ok(ring)
    }

    /// Adds a key that lies in a file.
    pub fn insert(&mut self, key: KeyPair, path: PathBuf) {
        self.keys.insert(key.id(), (key, path));
    }

    /// Where a key lies, if it is at hand.
    pub fn path(&self, id: &[u8]) -> Option<&Path> {
        self.keys.get(&hex(id)).map(|(_, path)| path.as_path())
    }

    /// The public half of a key that is at hand.
    pub fn public(&self, id: &[u8]) -> Option<Key> {
        self.keys.get(&hex(id)).map(|(key, _)| key.public().clone())
    }

    /// The keys of a role that are at hand: at least `threshold` of them.
    pub fn of(&self, role: &str, ids: &[Decoded<Hex>], threshold: u64) -> Result<Vec<&KeyPair>> {
        let found: Vec<&KeyPair> =
            ids.iter().filter_map(|id| self.keys.get(&hex(id)).map(|(key, _)| key)).collect();
        if (found.len() as u64) < threshold {
            let wanted: Vec<String> =
                ids.iter().map(|id| format!("{role}-{}.pem", short(&hex(id)))).collect();
            return Err(input(format!(
                "{role} needs the signatures of {threshold} of its keys ({}), but {} of them are at hand: name their folders or files with --keys",
                wanted.join(", "),
                found.len()
            )));
        }
        Ok(found)
    }
}

/// The first digits of an id, enough for people.
pub fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let path = key.save(folder.path(), "targets").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let ring = Keyring::read(&[folder.path().into()]).unwrap();
        let found = ring.of("targets", &[key.tuf_id()], 1).unwrap();
        assert_eq!(found[0].id(), key.id());
        assert_eq!(found[0].sign(b"x"), key.sign(b"x"));

        let missing = ring.of("targets", &[key.tuf_id()], 2).err().unwrap().to_string();
        assert!(missing.contains("2 of its keys") && missing.contains("1 of them"), "{missing}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let told = Keyring::read(std::slice::from_ref(&path)).err().unwrap().to_string();
        assert!(told.contains("chmod 600"), "{told}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        let told = Keyring::read(&[path]).err().unwrap().to_string();
        assert!(told.contains("expected an Ed25519 key"), "{told}");
    }
}
