//! What is agreed on before anything is sent (PS3.8, 7.1 and PS3.7, D).

use std::collections::BTreeMap;

use dicom_dictionary_std::uids;
use dicom_ul::pdu::{
    AssociationAC, AssociationRJ, AssociationRJResult, AssociationRJServiceProviderPresentationReason,
    AssociationRJServiceUserReason, AssociationRJSource, AssociationRQ, PresentationContextProposed,
    PresentationContextResult, PresentationContextResultReason, UserVariableItem,
};

use super::Options;

/// The DICOM application context (PS3.7, A.2.1).
const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
/// This program, derived from a UUID (PS3.5, B.2).
pub(super) const IMPLEMENTATION_CLASS: &str = "2.25.55292666894682878082119056601148919825";
/// Without a version, so that a file's bytes do not depend on it.
pub(super) const IMPLEMENTATION_NAME: &str = "SCANSIDE";
/// Longest association request that is read: 128 presentation contexts with every transfer syntax there is take less.
pub(super) const MAX_REQUEST: u32 = 1 << 18;
/// A sender that takes no longer PDU could not take an answer in one piece.
const LEAST_PDU: u32 = 512;

/// An accepted presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) abstract_syntax: String,
    pub(super) transfer_syntax: String,
}

/// What was agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    /// By presentation context ID.
    pub(super) contexts: BTreeMap<u8, Context>,
    pub(super) reply: AssociationAC,
}

/// The answer to a request, from the options alone.
pub(super) fn negotiate(request: AssociationRQ, options: &Options) -> Result<Agreed, AssociationRJ> {
    use AssociationRJServiceUserReason as Reason;
    // Bit 0 is version 1; further bits are other versions that the sender could speak as well.
    if request.protocol_version & 1 == 0 {
        return Err(permanent(Reason::NoReasonGiven));
    }
    if trim(&request.application_context_name) != APPLICATION_CONTEXT {
        return Err(permanent(Reason::ApplicationContextNameNotSupported));
    }
    let known = |titles: &[String], title: &str| titles.iter().any(|t| t.trim() == title.trim());
    if !options.any_called && !known(&options.ae_titles, &request.called_ae_title) {
        return Err(permanent(Reason::CalledAETitleNotRecognized));
    }
    if !options.calling.is_empty() && !known(&options.calling, &request.calling_ae_title) {
        return Err(permanent(Reason::CallingAETitleNotRecognized));
    }
    let longest = request.user_variables.iter().find_map(|item| match item {
        UserVariableItem::MaxLength(length) => Some(*length),
        _ => None,
    });
    // 0 is no limit (PS3.8, D.1).
    if longest.is_some_and(|length| length != 0 && length < LEAST_PDU) {
        return Err(permanent(Reason::NoReasonGiven));
    }
    let mut contexts = BTreeMap::new();
    let mut results = Vec::new();
    for proposed in request.presentation_contexts {
        // Odd, and each but once (PS3.8, 9.3.2.2).
        if proposed.id % 2 == 0 || results.iter().any(|r: &PresentationContextResult| r.id == proposed.id) {
            return Err(permanent(Reason::NoReasonGiven));
        }
        let id = proposed.id;
        let (reason, transfer_syntax) = match choose(&proposed, options) {
            Ok(context) => {
                let chosen = context.transfer_syntax.clone();
                contexts.insert(id, context);
                (PresentationContextResultReason::Acceptance, chosen)
            }
            // Not significant, but it must be there.
            Err(reason) => (reason, uids::IMPLICIT_VR_LITTLE_ENDIAN.to_owned()),
        };
        results.push(PresentationContextResult { id, reason, transfer_syntax });
    }
    let reply = AssociationAC {
        protocol_version: 1,
        calling_ae_title: request.calling_ae_title,
        called_ae_title: request.called_ae_title,
        application_context_name: APPLICATION_CONTEXT.to_owned(),
        presentation_contexts: results,
        user_variables: vec![
            UserVariableItem::MaxLength(options.max_pdu),
            UserVariableItem::ImplementationClassUID(IMPLEMENTATION_CLASS.to_owned()),
            UserVariableItem::ImplementationVersionName(IMPLEMENTATION_NAME.to_owned()),
        ],
    };
    Ok(Agreed { contexts, reply })
}

/// The sender's first transfer syntax that can be used.
fn choose(
    proposed: &PresentationContextProposed,
    options: &Options,
) -> Result<Context, PresentationContextResultReason> {
    let abstract_syntax = trim(&proposed.abstract_syntax).to_owned();
    let uncompressed = [uids::IMPLICIT_VR_LITTLE_ENDIAN, uids::EXPLICIT_VR_LITTLE_ENDIAN];
    let verification = abstract_syntax == uids::VERIFICATION;
    if !verification && !options.sop_classes.contains(&abstract_syntax) {
        return Err(PresentationContextResultReason::AbstractSyntaxNotSupported);
    }
    let usable = |uid: &&str| {
        if verification {
            uncompressed.contains(uid)
        } else {
            options.transfer_syntaxes.iter().any(|t| t == uid)
        }
    };
    let chosen = proposed.transfer_syntaxes.iter().map(|uid| trim(uid)).find(usable);
    let chosen = chosen.ok_or(PresentationContextResultReason::TransferSyntaxesNotSupported)?;
    Ok(Context { transfer_syntax: chosen.to_owned(), abstract_syntax })
}

fn trim(uid: &str) -> &str {
    uid.trim_matches(['\0', ' '])
}

fn permanent(reason: AssociationRJServiceUserReason) -> AssociationRJ {
    AssociationRJ { result: AssociationRJResult::Permanent, source: AssociationRJSource::ServiceUser(reason) }
}

/// As many associations run as may: the sender should try again.
pub(super) fn busy() -> AssociationRJ {
    let reason = AssociationRJServiceProviderPresentationReason::LocalLimitExceeded;
    let source = AssociationRJSource::ServiceProviderPresentation(reason);
    AssociationRJ { result: AssociationRJResult::Transient, source }
}
