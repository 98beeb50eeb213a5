//! Signed JSON: `{"signed": …, "signatures": [{"keyid", "sig"}]}`, as TUF has it, for metadata and states alike.

use std::collections::BTreeSet;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use olpc_cjson::CanonicalFormatter;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Serializer, Value};
use tough::schema::key::Key;
use tough::schema::{Delegations, Signature, Signed};

use crate::keys::KeyPair;

/// The bytes that are signed: OLPC canonical JSON.
///
/// # Panics
/// Where the value holds a floating point number, which canonical JSON does not have; none of ours does.
pub fn canonical(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, CanonicalFormatter::new());
    value.serialize(&mut serializer).expect("plain data without floating point numbers");
    bytes
}

/// Signs with each of `keys`, in the order of their ids.
pub fn seal<T: Serialize>(signed: T, keys: &[&KeyPair]) -> Signed<T> {
    let message = canonical(&signed);
    let mut keys = keys.to_vec();
    keys.sort_by_key(|key| key.id());
    keys.dedup_by_key(|key| key.id());
    let signatures = keys
        .into_iter()
        .map(|key| Signature { keyid: key.tuf_id(), sig: key.sign(&message).into() })
        .collect();
    Signed { signed, signatures }
}

/// The file or payload of something signed; the same for the same content.
pub fn to_bytes<T: Serialize>(envelope: &Signed<T>) -> Vec<u8> {
    let mut bytes = canonical(envelope);
    bytes.push(b'\n');
    bytes
}

/// A signed state that its site's keys vouch for.
///
/// The signatures are checked over what was received, before anybody looks into it.
pub fn open<T: DeserializeOwned>(bytes: &[u8], delegations: &Delegations, site: &str) -> Result<T, String> {
    let envelope: Signed<Value> =
        serde_json::from_slice(bytes).map_err(|e| format!("no signed JSON ({e})"))?;
    check(&envelope, delegations, site)?;
    serde_json::from_value(envelope.signed).map_err(|e| format!("signed, but not what belongs there ({e})"))
}

/// What a payload says, whoever signed it.
pub fn peek<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let envelope: Signed<Value> = serde_json::from_slice(bytes).ok()?;
    serde_json::from_value(envelope.signed).ok()
}

/// Checks that enough of the site's keys have signed.
pub fn check(envelope: &Signed<Value>, delegations: &Delegations, site: &str) -> Result<(), String> {
    let role = delegations.roles.iter().find(|role| role.name == site);
    let role = role.ok_or_else(|| format!("the repository does not know the site {site}"))?;
    if has_float(&envelope.signed) {
        return Err("it holds a floating point number, which no signature covers".into());
    }
    let message = canonical(&envelope.signed);
    let valid: BTreeSet<&[u8]> = envelope
        .signatures
        .iter()
        .filter(|signature| role.keyids.contains(&signature.keyid))
        .filter(|signature| {
            delegations.keys.get(&signature.keyid).is_some_and(|key| verifies(key, &message, &signature.sig))
        })
        .map(|signature| &signature.keyid[..])
        .collect();
    if (valid.len() as u64) < role.threshold.get() {
        return Err(format!("{} of {} keys of the site {site} have signed it", valid.len(), role.threshold));
    }
    Ok(())
}

fn has_float(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(all) => all.iter().any(has_float),
        Value::Object(all) => all.values().any(has_float),
        _ => false,
    }
}

fn verifies(key: &Key, message: &[u8], signature: &[u8]) -> bool {
    match key {
        Key::Ed25519 { keyval, .. } => {
            UnparsedPublicKey::new(&ED25519, &keyval.public[..]).verify(message, signature).is_ok()
        }
        // Nothing here makes other keys.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::delegation;
    use serde_json::json;

    fn site(keys: &[&KeyPair], threshold: u64) -> Delegations {
        let mut all = Delegations::new();
        let ids: Vec<_> = keys.iter().map(|key| key.tuf_id()).collect();
        delegation(&mut all, "north", &ids, threshold, keys.iter().map(|key| key.public().clone()));
        all
    }

    #[test]
    fn only_enough_different_keys_of_the_site_count() {
        let keys: Vec<KeyPair> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
        let [a, b, stranger] = [&keys[0], &keys[1], &keys[2]];
        let two = site(&[a, b], 2);
        let value = json!({"revision": 3, "text": "ü\"\\"});
        let bytes = |keys: &[&KeyPair]| to_bytes(&seal(value.clone(), keys));
        assert_eq!(open::<Value>(&bytes(&[a, b]), &two, "north").unwrap(), value);
        for few in [&[a][..], &[a, a], &[a, stranger], &[stranger], &[]] {
            let told = open::<Value>(&bytes(few), &two, "north").unwrap_err();
            assert!(told.contains("of 2 keys of the site north"), "{told}");
        }
        assert!(open::<Value>(&bytes(&[a, b]), &two, "south").unwrap_err().contains("does not know"));

        // One signature twice is one key's.
        let mut twice = seal(value.clone(), &[a]);
        twice.signatures.push(twice.signatures[0].clone());
        assert!(open::<Value>(&to_bytes(&twice), &two, "north").is_err());
    }

    #[test]
    fn no_byte_of_what_is_signed_can_change() {
        let key = KeyPair::generate().unwrap();
        let one = site(&[&key], 1);
        let bytes = to_bytes(&seal(json!({"revision": 3, "site": "north"}), &[&key]));
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in
            [("3", "4"), ("north", "south"), ("revision", "revisiom"), ("\"site\"", "\"x\":0.5,\"site\"")]
        {
            let forged = text.replacen(from, to, 1);
            assert_ne!(forged, text);
            assert!(open::<Value>(forged.as_bytes(), &one, "north").is_err(), "{from}");
        }
        for bad in ["", "{}", "[]", r#"{"signed":{},"signatures":[]}"#] {
            assert!(open::<Value>(bad.as_bytes(), &one, "north").is_err(), "{bad}");
        }
    }
}
