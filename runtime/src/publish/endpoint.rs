//! Where the broker is, and what it wants to see.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use firmware_config::Broker;
use tokio_rustls::rustls::ClientConfig;

use super::PublishError;
use super::tls;

/// What proves the one to the other, as files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The authorities that the broker's certificate must come from, PEM.
    pub ca: Option<&'a Path>,
    /// This device's certificate chain and private key, PEM.
    pub identity: Option<(&'a Path, &'a Path)>,
    /// The user's name.
    pub user: Option<&'a str>,
    /// The user's password, on the file's first line.
    pub password_file: Option<&'a Path>,
}

/// A broker and how to log in. It holds secrets and is not printed.
#[derive(Clone)]
pub struct Endpoint {
    pub(super) broker: Broker,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) login: Option<(String, String)>,
}

impl Endpoint {
    /// A broker that asks for nothing.
    pub fn open(broker: Broker) -> Result<Self, PublishError> {
        Self::new(broker, &Credentials::default())
    }

    /// Reads the files that `credentials` names.
    pub fn new(broker: Broker, credentials: &Credentials<'_>) -> Result<Self, PublishError> {
        let tls = match (broker.is_tls(), credentials.ca) {
            (false, _) => None,
            (true, None) => return Err(PublishError::NoAuthority { broker }),
            (true, Some(ca)) => Some(Arc::new(tls::client(ca, credentials.identity)?)),
        };
        let password = credentials.password_file.map_or(Ok(String::new()), password)?;
        let login = credentials.user.map(|user| (user.to_owned(), password));
        Ok(Self { broker, tls, login })
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }
}

fn password(path: &Path) -> Result<String, PublishError> {
    let wrong = |problem: String| PublishError::Credential { path: path.into(), problem };
    let text = fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mode = fs::metadata(path).map_or(0, |data| data.permissions().mode());
    if mode & 0o007 != 0 {
        return Err(wrong(
            "holds a password and can be read by everybody: take that right away with chmod".into(),
        ));
    }
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        return Err(wrong("has an empty first line, expected the password there".into()));
    }
    Ok(password.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_of_a_file_of_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let set = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            password(&path)
        };
        assert_eq!(set("secret word\n", 0o600).unwrap(), "secret word");
        assert_eq!(set("secret", 0o640).unwrap(), "secret");
        for (text, mode, part) in [("secret", 0o644, "by everybody"), ("\nx", 0o600, "empty first line")] {
            let error = set(text, mode).unwrap_err();
            let sentence = error.to_string();
            assert!(
                error.is_bad_input() && sentence.contains(part) && !sentence.contains("secret"),
                "{sentence}"
            );
        }
        assert!(password(&folder.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn tls_without_an_authority_is_refused() {
        let broker: Broker = "mqtts://localhost".parse().unwrap();
        assert!(matches!(Endpoint::open(broker), Err(PublishError::NoAuthority { .. })));
    }
}
