//! TLS towards a broker: whom to trust, and who we are.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore};

use super::PublishError;
use super::error::End;

/// TLS 1.2 and 1.3, trusting `ca` only: no authority comes with the program, so none can grow stale in it.
pub(super) fn client(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, PublishError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| wrong(ca, &error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(ca, &error))?
        .with_root_certificates(roots);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| file(key, format!("holds no private key in PEM ({error})")))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| wrong(cert, &error))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PublishError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(file(path, "holds no certificate in PEM".into())),
        Err(error) => Err(file(path, format!("holds no certificate in PEM ({error})"))),
    }
}

fn wrong(path: &Path, error: &Error) -> PublishError {
    file(path, format!("cannot be used for TLS: {error}"))
}

fn file(path: &Path, problem: String) -> PublishError {
    PublishError::Credential { path: path.into(), problem }
}

/// What ended a connection, with TLS's own word where it has one.
pub(super) fn end(error: &io::Error) -> End {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(problem)) => End::Untrusted(problem.to_string()),
        Some(Error::AlertReceived(alert)) => End::Refused(format!("TLS alert {alert:?}")),
        Some(other) => End::Lost(format!("TLS: {other}")),
        None => End::Lost(error.to_string()),
    }
}
