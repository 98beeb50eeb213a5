use std::net::SocketAddr;
use std::time::Duration;

use dicom_dictionary_std::uids;
use firmware_config::device::Network;

use super::{ListenError, Tls};
use crate::volume::DECODABLE_TRANSFER_SYNTAXES;

/// The CT and MR image storage classes (PS3.4, B.5) that are grayscale.
pub const CT_AND_MR: [&str; 6] = [
    uids::CT_IMAGE_STORAGE,
    uids::ENHANCED_CT_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE,
    uids::MR_IMAGE_STORAGE,
    uids::ENHANCED_MR_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE,
];

/// Who may connect, what may be sent, and how much of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address and port; port 0 for any that is free.
    pub listen: SocketAddr,
    /// The titles under which this device may be called (PS3.8, 9.3.2, Called-AE-title); others are rejected.
    pub ae_titles: Vec<String>,
    /// Take any called title. For sites whose scanners cannot be told one.
    pub any_called: bool,
    /// The titles that may call; any if empty.
    pub calling: Vec<String>,
    /// The networks whose addresses may connect; any if empty. Checked before a byte is read.
    pub peers: Vec<Network>,
    /// Storage SOP classes that are taken.
    pub sop_classes: Vec<String>,
    /// Transfer syntaxes that are taken. Of those that a sender proposes for one presentation context, its first that is
    /// among them is accepted: senders propose what they hold first, and converting costs them time or quality.
    pub transfer_syntaxes: Vec<String>,
    /// Most associations at a time; further ones are rejected for the time being.
    pub max_associations: usize,
    /// Most connections at a time that are not an association yet; further ones are closed.
    pub max_handshakes: usize,
    /// Longest PDU that is read, in bytes, and told to senders.
    pub max_pdu: u32,
    /// Longest data set, in bytes; a longer one is refused, the association goes on.
    pub max_instance_bytes: u64,
    /// Most bytes of all data sets of an association, which is aborted beyond.
    pub max_association_bytes: u64,
    /// From the connection to the association.
    pub handshake: Duration,
    /// From one whole PDU to the next, and for each answer to be taken.
    pub idle: Duration,
    /// From the connection to its end, whatever happens on it.
    pub deadline: Duration,
    /// Encryption; plain TCP without.
    pub tls: Option<Tls>,
}

impl Options {
    /// One title, everything else as documented for devices.
    pub fn new(listen: SocketAddr, ae_title: &str) -> Self {
        let own = |uids: &[&str]| uids.iter().map(|&uid| uid.to_owned()).collect();
        Self {
            listen,
            ae_titles: vec![ae_title.to_owned()],
            any_called: false,
            calling: Vec::new(),
            peers: Vec::new(),
            sop_classes: own(&CT_AND_MR),
            transfer_syntaxes: own(DECODABLE_TRANSFER_SYNTAXES),
            max_associations: 16,
            max_handshakes: 16,
            max_pdu: 131_072,
            max_instance_bytes: 2 << 30,
            max_association_bytes: 64 << 30,
            handshake: Duration::from_secs(15),
            idle: Duration::from_mins(5),
            deadline: Duration::from_hours(4),
            tls: None,
        }
    }

    /// Checks what types cannot state.
    pub(super) fn validate(&self) -> Result<(), ListenError> {
        let refuse = |what: &'static str, found: String, expected: &'static str| {
            Err(ListenError::Option { what, found, expected })
        };
        let titles = self.ae_titles.iter().chain(&self.calling);
        for title in titles {
            // PS3.5, 6.2, VR AE.
            let sound = |c: char| (' '..='~').contains(&c) && c != '\\';
            if title.trim().is_empty() || title.len() > 16 || !title.chars().all(sound) {
                let found = format!("\"{}\"", title.escape_debug());
                return refuse("an AE title", found, "1 to 16 printable ASCII characters");
            }
        }
        if self.ae_titles.is_empty() && !self.any_called {
            return refuse("the list of AE titles", "empty".into(), "one title at least");
        }
        if self.sop_classes.is_empty() || self.transfer_syntaxes.is_empty() {
            return refuse("the list of SOP classes or transfer syntaxes", "empty".into(), "one at least");
        }
        if !(4096..=1 << 20).contains(&self.max_pdu) {
            return refuse("the maximum PDU size", self.max_pdu.to_string(), "4096 to 1048576 bytes");
        }
        if self.max_associations == 0 || self.max_handshakes == 0 {
            return refuse("the number of associations or handshakes", "0".into(), "1 at least");
        }
        let times = [self.handshake, self.idle, self.deadline];
        let sound = Duration::from_millis(1)..=Duration::from_hours(7 * 24);
        if let Some(time) = times.into_iter().find(|time| !sound.contains(time)) {
            return refuse("a time limit of the listener", format!("{time:?}"), "1 ms to 7 days");
        }
        Ok(())
    }
}
