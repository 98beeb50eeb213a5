//! What an operator must know of a plugin file: its manifest, and where its bytes are.
//!
//! The members are checked against their digests here; whether factors, graph and golden cases agree is checked by the device.

use std::io::Read;
use std::path::Path;

use firmware_config::Manifest;

use crate::error::{Result, malformed};
use crate::files;
use crate::repository::sha256;

/// The members, in their order.
const MEMBERS: [&str; 5] =
    ["manifest.json", "content.safetensors", "golden.safetensors", "card.md", "SHA256SUMS"];

/// What tar itself says quotes the bytes that it did not expect.
const NO_TAR: &str = "it is no tar, or it is cut short";

/// Larger than any plugin.
const MOST_BYTES: usize = 256 << 20;

/// A plugin file.
pub struct PluginFile {
    /// The file.
    pub bytes: Vec<u8>,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Bytes that its golden inputs take, tar header and padding included.
    pub golden_bytes: usize,
}

impl PluginFile {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        let wrong =
            |detail: String| malformed(path, detail, "a task plugin as `scanside-train export` writes it");
        if bytes.len() > MOST_BYTES {
            return Err(wrong(format!("{} bytes long", bytes.len())));
        }
        let members = members(&bytes).map_err(|detail| wrong(format!("no sound plugin ({detail})")))?;
        let sums: Vec<String> = members
            .iter()
            .zip(MEMBERS)
            .take(4)
            .map(|(member, name)| format!("{}  {name}\n", sha256(member)))
            .collect();
        if sums.concat().as_bytes() != members[4] {
            return Err(wrong("damaged: its members do not match its SHA256SUMS".into()));
        }
        let manifest: Manifest = serde_json::from_slice(&members[0])
            .map_err(|error| wrong(format!("a plugin with a manifest that cannot be read ({error})")))?;
        manifest.validate().map_err(|invalid| wrong(format!("a plugin in whose manifest {invalid}")))?;
        if manifest.golden.is_empty() {
            return Err(wrong("a plugin without golden cases, which no device lets go live".into()));
        }
        let golden_bytes = 512 + members[2].len().next_multiple_of(512);
        Ok(Self { bytes, manifest, golden_bytes })
    }
}

fn members(bytes: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
    let mut members = Vec::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().map_err(|_| NO_TAR)? {
        let mut entry = entry.map_err(|_| NO_TAR)?;
        let expected = MEMBERS.get(members.len()).ok_or("it has more than five members")?;
        if *entry.path_bytes() != *expected.as_bytes() {
            return Err(format!(
                "member {} where {expected} belongs",
                String::from_utf8_lossy(&entry.path_bytes())
            ));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|_| NO_TAR)?;
        members.push(content);
    }
    if members.len() == MEMBERS.len() { Ok(members) } else { Err(format!("{} of 5 members", members.len())) }
}
