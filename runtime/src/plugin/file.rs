//! The plugin file: a tar of fixed members in a fixed order with fixed headers.

use std::io::Read;
use std::path::Path;

use firmware_config::ContentDtype;

use super::{Plugin, PluginError, content_sha256, tensor_error};
use crate::tensor::{parse_safetensors, safetensors_bytes, safetensors_f16_bytes, sha256};

const MANIFEST: &str = "manifest.json";
const CONTENT: &str = "content.safetensors";
const GOLDEN: &str = "golden.safetensors";
const CARD: &str = "card.md";
const SUMS: &str = "SHA256SUMS";

/// Larger than any plugin: rank 64 on ViT-g has 60 MB of factors.
pub const MOST_BYTES: u64 = 256 << 20;

/// The bytes of the plugin file.
pub(super) fn encode(plugin: &Plugin) -> Vec<u8> {
    let mut manifest = serde_json::to_vec_pretty(&plugin.manifest).expect("plain data serialises");
    manifest.push(b'\n');
    let content = match plugin.manifest.content_dtype {
        ContentDtype::F32 => safetensors_bytes(&plugin.content, None),
        ContentDtype::F16 => safetensors_f16_bytes(&plugin.content),
    };
    let mut members = vec![
        (MANIFEST, manifest),
        (CONTENT, content),
        (GOLDEN, safetensors_bytes(&plugin.golden, None)),
        (CARD, plugin.card.clone().into_bytes()),
    ];
    let sums: Vec<String> =
        members.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect();
    let sums = sums.concat();
    members.push((SUMS, sums.into_bytes()));
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        tar.append_data(&mut header, name, bytes.as_slice()).expect("writing to memory cannot fail");
    }
    tar.into_inner().expect("writing to memory cannot fail")
}

/// See [`Plugin::read_bytes`].
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, PluginError> {
    let io = |source| PluginError::Io { path: path.into(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    if length <= MOST_BYTES {
        // A device or pipe has no length, and may have no end.
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    }
    if length.max(bytes.len() as u64) > MOST_BYTES {
        let found = if length > MOST_BYTES { format!("{length}") } else { format!("more than {MOST_BYTES}") };
        let detail = format!("{found} bytes, expected at most {MOST_BYTES}");
        return Err(PluginError::Malformed { path: path.into(), detail });
    }
    Ok(bytes)
}

/// Reads and checks a plugin file; returns it with the file's SHA-256.
pub(super) fn read(path: &Path) -> Result<(Plugin, String), PluginError> {
    let bytes = read_bytes(path)?;
    Ok((parse(&bytes, path)?, sha256(&bytes)))
}

/// See [`Plugin::parse`].
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Plugin, PluginError> {
    let malformed = |detail: String| PluginError::Malformed { path: path.into(), detail };
    let mut members = Vec::new();
    let mut archive = tar::Archive::new(bytes);
    for (entry, expected) in
        archive.entries().map_err(|e| malformed(e.to_string()))?.zip([MANIFEST, CONTENT, GOLDEN, CARD, SUMS])
    {
        let mut entry = entry.map_err(|e| malformed(e.to_string()))?;
        let name = entry.path_bytes().into_owned();
        if name != expected.as_bytes() {
            return Err(malformed(format!(
                "member {} where {expected} belongs",
                String::from_utf8_lossy(&name)
            )));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|e| malformed(format!("{expected}: {e}")))?;
        members.push(content);
    }
    let [manifest, content, golden, card, _] = members.as_slice() else {
        return Err(malformed(format!("it ends after {} of 5 members", members.len())));
    };
    let manifest: firmware_config::Manifest =
        serde_json::from_slice(manifest).map_err(|e| malformed(format!("{MANIFEST}: {e}")))?;
    manifest.validate().map_err(|invalid| PluginError::Manifest { path: path.into(), invalid })?;
    let tensors =
        |bytes: &[u8]| parse_safetensors(bytes, path).map(|f| f.tensors).map_err(|e| tensor_error(&e, path));
    let plugin = Plugin {
        content: tensors(content)?,
        golden: tensors(golden)?,
        card: String::from_utf8(card.clone()).map_err(|_| malformed(format!("{CARD} is not UTF-8")))?,
        manifest,
    };
    // Writing is deterministic, so this finds every flipped bit, in headers, padding and digests too.
    if encode(&plugin) != bytes {
        return Err(malformed("its bytes do not match its checksums".into()));
    }
    check(&plugin).map_err(malformed)?;
    Ok(plugin)
}

/// What ties manifest and content together.
fn check(plugin: &Plugin) -> Result<(), String> {
    let manifest = &plugin.manifest;
    let content = content_sha256(&plugin.content, manifest);
    if content != manifest.content_sha256 {
        return Err(format!(
            "the content has SHA-256 {content}, the manifest names {}",
            manifest.content_sha256
        ));
    }
    let labels = plugin.content.get("head.weight").and_then(|t| t.shape.first().copied());
    if labels != Some(manifest.labels.len()) {
        return Err(format!("{} labels for a head of {labels:?} rows", manifest.labels.len()));
    }
    let parameters: usize = plugin.content.values().map(|t| t.data.len()).sum();
    if parameters != manifest.parameters {
        return Err(format!("{parameters} parameters, the manifest says {}", manifest.parameters));
    }
    if plugin.content.values().flat_map(|t| &t.data).any(|x| !x.is_finite()) {
        return Err("a factor is not a finite number".into());
    }
    match manifest.golden.iter().find(|case| plugin.golden.get(&case.name).is_none_or(|t| t.shape.len() != 3))
    {
        Some(case) => Err(format!("golden case {} has no volume", case.name)),
        None => Ok(()),
    }
}
