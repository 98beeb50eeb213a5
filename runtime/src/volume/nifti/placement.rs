//! Where the voxels lie: sform, qform, or what the user says.

use std::path::Path;

use super::header::Header;
use crate::volume::geometry::{Fault, Geometry, dot, norm};
use crate::volume::{AxisCodes, VolumeError};

/// The geometry of a file, and what is to be said about it.
///
/// - Both forms usable (code above 0, not singular): the sform, unless the two disagree on handedness or on
///   which way is right; then the file contradicts itself and is refused.
/// - One usable: that one.
/// - None: refused.
///
/// Where it would be refused, `assumed` axis codes give an affine from `pixdim`, centred.
pub(super) fn place(
    header: &Header,
    assumed: Option<AxisCodes>,
    path: &Path,
) -> Result<(Geometry, Vec<String>), VolumeError> {
    let mut warnings = Vec::new();
    let forms = [("sform", header.sform_code, sform(header)), ("qform", header.qform_code, qform(header))];
    let set: Vec<_> = forms.iter().filter(|(_, code, _)| *code > 0).collect();
    let singular = |g: &Option<Geometry>| g.is_none_or(|g| g.fault() == Some(Fault::Singular));
    let usable: Vec<_> =
        set.iter().filter(|(_, _, g)| !singular(g)).filter_map(|(name, _, g)| Some((*name, (*g)?))).collect();
    let problem = match usable[..] {
        [] if set.is_empty() => {
            "neither sform_code nor qform_code is set, so left and right are unknown".to_owned()
        }
        [] => "its sform or qform is singular, so left and right are unknown".to_owned(),
        [(_, sform), (_, qform)] if contradict(&sform, &qform) => {
            let (s, q) = (sform.axis_codes(), qform.axis_codes());
            format!("its sform says {s} and its qform {q}, which differ on left and right")
        }
        [(name, geometry), ..] => {
            if let Some((other, ..)) = set.iter().find(|(_, _, g)| singular(g)) {
                warnings.push(format!("the {other} is singular, the {name} was used"));
            }
            if let Some(Fault::Sheared { degrees }) = geometry.fault() {
                let problem = format!("its {name} is sheared, its axes are {degrees:.1}° off right angles");
                return Err(VolumeError::Geometry { path: path.to_owned(), problem });
            }
            return Ok((geometry, warnings));
        }
    };
    let Some(codes) = assumed else {
        return Err(VolumeError::Orientation { path: path.to_owned(), problem });
    };
    let unit = millimetres(header);
    let mut spacing = [0.0; 3];
    for (n, spacing) in spacing.iter_mut().enumerate() {
        *spacing = header.pixdim[n + 1] * unit;
        if !(1e-6..=1e6).contains(spacing) {
            let field = format!("pixdim[{}]", n + 1);
            let expected = "a voxel size above 0, since sform and qform give none";
            return Err(VolumeError::field(path, field, header.pixdim[n + 1], expected));
        }
    }
    warnings.push(format!("{problem}; the orientation {codes} was assumed as asked for"));
    Ok((codes.centred(spacing, header.dims), warnings))
}

/// Left-handed against right-handed, or directions to the patient's right that are more than 60° apart among the stored axes.
fn contradict(sform: &Geometry, qform: &Geometry) -> bool {
    let right = |g: &Geometry| -> [f64; 3] {
        let length = |axis: usize| norm(std::array::from_fn(|r| g.affine[r][axis]));
        std::array::from_fn(|axis| g.affine[0][axis] / length(axis))
    };
    let (s, q) = (right(sform), right(qform));
    sform.determinant() * qform.determinant() < 0.0 || dot(s, q) < 0.5 * norm(s) * norm(q)
}

/// Millimetres in the header's spatial unit; an unknown unit is taken for mm, as everyone does.
fn millimetres(header: &Header) -> f64 {
    match header.unit {
        1 => 1e3,
        3 => 1e-3,
        _ => 1.0,
    }
}

fn sform(header: &Header) -> Option<Geometry> {
    let unit = millimetres(header);
    let affine = header.srow.map(|row| row.map(|x| x * unit));
    affine.as_flattened().iter().all(|x| x.is_finite()).then_some(Geometry { affine })
}

/// Method 2 of `nifti1.h`: a unit quaternion (its real part not stored), `pixdim`, and `qfac` in `pixdim[0]`.
fn qform(header: &Header) -> Option<Geometry> {
    let [b, c, d, x, y, z] = header.quatern;
    let [qfac, pixdim @ ..] = header.pixdim;
    let imaginary = b * b + c * c + d * d;
    if !header.quatern.iter().chain(&pixdim).all(|v| v.is_finite()) || imaginary > 1.0 + 1e-5 {
        return None;
    }
    if pixdim.iter().any(|&size| size <= 0.0) {
        return None;
    }
    // Rounding of the three stored parts to f32 may leave their sum of squares a little above 1.
    let length = imaginary.max(1.0).sqrt();
    let [b, c, d] = [b / length, c / length, d / length];
    let a = (1.0 - (b * b + c * c + d * d)).max(0.0).sqrt();
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let unit = millimetres(header);
    let third = if qfac < 0.0 { -1.0 } else { 1.0 };
    let size = [pixdim[0] * unit, pixdim[1] * unit, pixdim[2] * unit * third];
    let steps = std::array::from_fn(|axis| std::array::from_fn(|r| rotation[r][axis] * size[axis]));
    Some(Geometry::from_columns(steps, [x * unit, y * unit, z * unit]))
}
