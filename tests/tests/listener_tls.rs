//! The DICOM listener over TLS, with dcmtk's OpenSSL on the other side.
#![allow(missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use runtime::ingest::listener::{End, Options, Tls};
use tempfile::TempDir;
use tests::scanner::{dcmtk, listen, options, run};

/// An authority in `folder`, and a key and certificate of its for each name.
fn certificates(folder: &Path, names: &[&str]) -> PathBuf {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let authority = folder.join("ca.pem");
    std::fs::write(&authority, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for name in names {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, *name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    authority
}

fn slice() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans/pydicom/CT_small.dcm");
    assert!(path.exists(), "{} is missing: run `cargo xtask assets`", path.display());
    path
}

#[test]
fn senders_with_a_certificate_of_the_authority_get_in() {
    let (ours, theirs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let authority = certificates(ours.path(), &["device", "scanner"]);
    certificates(theirs.path(), &["stranger"]);
    let file = |name: &str| ours.path().join(name).display().to_string();
    let open = |ca| Tls::open(&ours.path().join("device.pem"), &ours.path().join("device.key"), ca).unwrap();
    let short = Duration::from_secs(3);
    let limits = Options { handshake: short, tls: Some(open(Some(authority.as_path()))), ..options() };
    let (listener, folder) = listen(limits).unwrap();
    let to = listener.address();
    let ca = file("ca.pem");
    let scanner = ["+tls", &file("scanner.key"), &file("scanner.pem"), "+cf", &ca];
    let (ok, said) = run(dcmtk("storescu", to, &scanner).arg(slice())).unwrap();
    assert!(ok, "{said}");
    assert_eq!(folder.wait_ends(1), [End::Released]);
    assert_eq!(folder.kept().len(), 1);

    let foreign = |name: &str| theirs.path().join(name).display().to_string();
    let stranger = ["+tls", &foreign("stranger.key"), &foreign("stranger.pem"), "+cf", &ca];
    for refused in [&stranger[..], &["+tla", "+cf", &ca], &[]] {
        let (ok, said) = run(dcmtk("storescu", to, refused).args(["-ta", "5"]).arg(slice())).unwrap();
        assert!(!ok, "{refused:?}: {said}");
    }
    assert_eq!((folder.kept().len(), folder.ends().len()), (1, 1), "nothing of theirs");

    // Without an authority, whoever speaks TLS may send.
    let (listener, _folder) = listen(Options { tls: Some(open(None)), ..options() }).unwrap();
    let (ok, said) = run(dcmtk("storescu", listener.address(), &stranger).arg(slice())).unwrap();
    assert!(ok, "{said}");
}

#[test]
fn files_that_are_no_certificates_are_told() {
    let folder = TempDir::new().unwrap();
    certificates(folder.path(), &["device", "other"]);
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("empty.pem"), "").unwrap();
    for (certificate, key, ca, what) in [
        ("missing.pem", "device.key", None, "missing.pem is not usable as the listener's certificate"),
        (
            "empty.pem",
            "device.key",
            None,
            "empty.pem is not usable as the listener's certificate: it holds no",
        ),
        ("device.pem", "device.pem", None, "device.pem is not usable as the listener's key: it holds none"),
        ("device.pem", "other.key", None, "other.key is not usable as the listener's key"),
        (
            "device.pem",
            "device.key",
            Some("other.key"),
            "other.key is not usable as the listener's client CA",
        ),
    ] {
        let ca = ca.map(file);
        let error = Tls::open(&file(certificate), &file(key), ca.as_deref()).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains(what), "{error}");
    }
}
