//! UIDs in what leaves the device.

use std::borrow::Cow;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::TaskResult;

/// A device's secret, with which it hashes UIDs: 32 random bytes that never leave it.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceKey([u8; 32]);

impl DeviceKey {
    /// From random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash that stands for a UID: `hmac-sha256:` and HMAC-SHA-256 of the UID's text, in lower-case hexadecimal. The same UID gives
    /// the same hash on this device for ever, and another one on every other device.
    pub fn hash(&self, uid: &str) -> String {
        // Keys of any length are taken.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return "hmac-sha256:".into() };
        mac.update(uid.as_bytes());
        let digest = mac.finalize().into_bytes();
        digest.iter().fold("hmac-sha256:".into(), |text, byte| format!("{text}{byte:02x}"))
    }
}

/// How UIDs stand in what leaves the device.
#[derive(Clone, Copy)]
pub enum UidForm<'a> {
    /// As they are.
    Plain,
    /// See [`DeviceKey::hash`].
    Hashed(&'a DeviceKey),
    /// Not at all.
    LeftOut,
}

impl TaskResult {
    /// The same result with its DICOM UIDs in this form. Its `result_id` stays: no UID is hashed into it in a way that leads back.
    pub fn with_uids(&self, form: UidForm<'_>) -> Cow<'_, Self> {
        match form {
            UidForm::Plain => Cow::Borrowed(self),
            UidForm::LeftOut => Cow::Owned(self.without_uids()),
            UidForm::Hashed(key) => {
                let mut out = self.clone();
                let slices = out.key_slices.iter_mut().map(|slice| &mut slice.sop_instance_uid);
                let views = out.input.views.values_mut().map(|view| &mut view.series_uid);
                let own = [&mut out.input.study_uid, &mut out.input.series_uid];
                let all = slices.chain(views).chain(own);
                all.flatten().for_each(|uid| *uid = key.hash(uid));
                Cow::Owned(out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_hmac_sha256() {
        // RFC 4231, test case 1 has a key of 20 bytes, which HMAC fills up with zeros.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        assert_eq!(
            DeviceKey::new(key).hash("Hi There"),
            "hmac-sha256:b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }

    #[test]
    fn every_uid_is_hashed_and_nothing_else_changes() {
        let result = crate::result::tests::sample();
        let key = DeviceKey::new([1; 32]);
        let hashed = result.with_uids(UidForm::Hashed(&key)).into_owned();
        let json = hashed.to_json();
        assert!(!json.contains("\"1.2.3"), "{json}");
        assert_eq!(hashed.input.series_uid, Some(key.hash("1.2.3.4")));
        assert_eq!(json.matches("hmac-sha256:").count(), 3);
        assert_eq!(hashed.without_uids().labels, result.labels);
        assert_eq!(hashed.result_id, result.result_id);
        assert_ne!(key.hash("1.2.3.4"), DeviceKey::new([2; 32]).hash("1.2.3.4"));
        assert_eq!(*result.with_uids(UidForm::Plain), result);
        assert_eq!(*result.with_uids(UidForm::LeftOut), result.without_uids());
    }
}
