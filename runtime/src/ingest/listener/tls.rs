use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::ListenError;

/// The listener's side of TLS 1.2 or 1.3 (PS3.15, B).
#[derive(Clone)]
pub struct Tls(pub(super) Arc<ServerConfig>);

impl Tls {
    /// From PEM files: the certificate with its chain, its key, and the authorities of the senders' certificates.
    /// Without the last, any sender may connect; with it, only those who show such a certificate.
    pub fn open(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, ListenError> {
        let fault =
            |path: &Path, what, problem: String| ListenError::Tls { path: path.to_owned(), what, problem };
        let certificates = |path: &Path, what| -> Result<Vec<CertificateDer<'static>>, ListenError> {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            match read.map_err(|error| fault(path, what, pem_problem(&error)))? {
                none if none.is_empty() => Err(fault(path, what, "it holds no certificate in PEM".into())),
                some => Ok(some),
            }
        };
        let chain = certificates(certificate, "certificate")?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, "key", pem_problem(&error)))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| fault(certificate, "certificate", error.to_string()))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, "client CA")? {
                    roots.add(authority).map_err(|error| fault(path, "client CA", error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| fault(path, "client CA", error.to_string()))?,
                )
            }
        };
        let config = builder.with_single_cert(chain, private);
        Ok(Self(Arc::new(config.map_err(|error| fault(key, "key", error.to_string()))?)))
    }
}

/// Without what the file holds: it may be a key.
fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds none in PEM".to_owned(),
        _ => "it is not PEM".to_owned(),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}
