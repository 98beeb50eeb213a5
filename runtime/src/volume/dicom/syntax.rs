//! Transfer syntaxes: how a data set is encoded, and how its pixels are (PS3.5, 10 and Annex A).

use std::path::Path;

use dicom_dictionary_std::uids;
use dicom_encoding::TransferSyntaxIndex;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use crate::volume::VolumeError;

/// Explicit VR Big Endian, retired in 2006, still in archives.
const EXPLICIT_BIG: &str = "1.2.840.10008.1.2.2";
/// JPIP Referenced Deflate: no pixel data, but a deflated data set.
const JPIP_DEFLATED: &str = "1.2.840.10008.1.2.4.95";

/// Transfer syntaxes of which the pixels can be read (PS3.6, Annex A): what a listener may negotiate for images.
///
/// Every other one is refused by name, JPEG Extended with its 12 bits among them, for which there is no decoder.
pub const DECODABLE_TRANSFER_SYNTAXES: &[&str] = &[
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_BIG,
    uids::RLE_LOSSLESS,
    uids::JPEG_BASELINE8_BIT,
    uids::JPEG_LOSSLESS,
    uids::JPEG_LOSSLESS_SV1,
    uids::JPEGLS_LOSSLESS,
    uids::JPEGLS_NEAR_LOSSLESS,
    uids::JPEG2000_LOSSLESS,
    uids::JPEG2000,
];

/// How the data set is encoded, whatever its pixel data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    ImplicitLittle,
    ExplicitLittle,
    ExplicitBig,
    Deflated,
}

impl Encoding {
    pub(super) fn of(syntax: &str, path: &Path) -> Result<Self, VolumeError> {
        match syntax {
            uids::IMPLICIT_VR_LITTLE_ENDIAN => Ok(Self::ImplicitLittle),
            EXPLICIT_BIG => Ok(Self::ExplicitBig),
            uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN | JPIP_DEFLATED => Ok(Self::Deflated),
            // All others of the standard, encapsulated ones included.
            _ if TransferSyntaxRegistry.get(syntax).is_some() => Ok(Self::ExplicitLittle),
            _ => Err(unsupported(syntax, path)),
        }
    }
}

/// How pixel data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// As it is, the least significant byte first.
    Little,
    /// As it is, the most significant byte first.
    Big,
    /// Run lengths (PS3.5, Annex G).
    Rle,
    /// A codestream a frame.
    Coded(Coding),
}

/// A family of codestreams, and within it the transfer syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    JpegBaseline,
    /// Process 14, any predictor.
    JpegLossless,
    /// Process 14, selection value 1: the first predictor.
    JpegLosslessSv1,
    JpegLsLossless,
    JpegLsNearLossless,
    Jpeg2000Lossless,
    Jpeg2000,
}

impl Syntax {
    pub(super) fn from_uid(uid: &str, path: &Path) -> Result<Self, VolumeError> {
        Ok(match uid {
            uids::IMPLICIT_VR_LITTLE_ENDIAN
            | uids::EXPLICIT_VR_LITTLE_ENDIAN
            | uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => Self::Little,
            EXPLICIT_BIG => Self::Big,
            uids::RLE_LOSSLESS => Self::Rle,
            uids::JPEG_BASELINE8_BIT => Self::Coded(Coding::JpegBaseline),
            uids::JPEG_LOSSLESS => Self::Coded(Coding::JpegLossless),
            uids::JPEG_LOSSLESS_SV1 => Self::Coded(Coding::JpegLosslessSv1),
            uids::JPEGLS_LOSSLESS => Self::Coded(Coding::JpegLsLossless),
            uids::JPEGLS_NEAR_LOSSLESS => Self::Coded(Coding::JpegLsNearLossless),
            uids::JPEG2000_LOSSLESS => Self::Coded(Coding::Jpeg2000Lossless),
            uids::JPEG2000 => Self::Coded(Coding::Jpeg2000),
            _ => return Err(unsupported(uid, path)),
        })
    }

    /// What the pixel data is called in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Little | Self::Big => "native",
            Self::Rle => "RLE",
            Self::Coded(coding) => coding.name(),
        }
    }
}

impl Coding {
    /// The UID by which a decoder is found.
    pub(super) fn uid(self) -> &'static str {
        match self {
            Self::JpegBaseline => uids::JPEG_BASELINE8_BIT,
            Self::JpegLossless => uids::JPEG_LOSSLESS,
            Self::JpegLosslessSv1 => uids::JPEG_LOSSLESS_SV1,
            Self::JpegLsLossless => uids::JPEGLS_LOSSLESS,
            Self::JpegLsNearLossless => uids::JPEGLS_NEAR_LOSSLESS,
            Self::Jpeg2000Lossless => uids::JPEG2000_LOSSLESS,
            Self::Jpeg2000 => uids::JPEG2000,
        }
    }

    /// The family's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::JpegBaseline | Self::JpegLossless | Self::JpegLosslessSv1 => "JPEG",
            Self::JpegLsLossless | Self::JpegLsNearLossless => "JPEG-LS",
            Self::Jpeg2000Lossless | Self::Jpeg2000 => "JPEG 2000",
        }
    }
}

fn unsupported(uid: &str, path: &Path) -> VolumeError {
    let name = TransferSyntaxRegistry.get(uid).map_or("an unknown one", |syntax| syntax.name());
    VolumeError::Unsupported {
        path: path.to_owned(),
        found: format!("pixel data in the transfer syntax {name} ({})", uid.escape_debug()),
        instead: "convert it to explicit little endian or RLE lossless".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use dicom_encoding::TransferSyntax;

    use super::*;

    #[test]
    fn what_is_listed_is_what_is_read() {
        let path = Path::new("x.dcm");
        for uid in DECODABLE_TRANSFER_SYNTAXES {
            let syntax = Syntax::from_uid(uid, path).unwrap();
            assert!(Encoding::of(uid, path).is_ok());
            if let Syntax::Coded(coding) = syntax {
                assert_eq!(coding.uid(), *uid);
                let entry = TransferSyntaxRegistry.get(uid).unwrap();
                assert!(entry.pixel_data_reader().is_some(), "no decoder for {}", entry.name());
            }
        }
        let listed = |syntax: &&str| DECODABLE_TRANSFER_SYNTAXES.contains(syntax);
        assert_eq!(TransferSyntaxRegistry.iter().map(TransferSyntax::uid).filter(listed).count(), 12);
        for other in TransferSyntaxRegistry.iter().map(TransferSyntax::uid).filter(|uid| !listed(uid)) {
            assert!(Syntax::from_uid(other, path).is_err(), "{other}");
        }
        let extended = Syntax::from_uid(uids::JPEG_EXTENDED12_BIT, path).unwrap_err().to_string();
        assert!(extended.contains("JPEG Extended"), "{extended}");
    }
}
