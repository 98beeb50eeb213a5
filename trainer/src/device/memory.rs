//! Memory between this program and a device: what libtorch has taken of a GPU's, and values on their way to one.
// The one place in this crate that calls C: `memory.cpp`, built by build.rs.
#![allow(
    unsafe_code,
    reason = "libtorch's allocator can only be asked in C++, and tch lends it no slice without"
)]

use tch::{Device, Kind, TchError, Tensor};

unsafe extern "C" {
    fn scanside_gpu_peak_bytes(device: i32) -> i64;
}

/// The most bytes that tensors on a GPU have held at one time since the program's start, as
/// `torch.cuda.max_memory_allocated` counts them; `None` for the CPU, and where nothing has been on the GPU.
pub fn peak_bytes(device: Device) -> Option<u64> {
    let Device::Cuda(index) = device else { return None };
    // SAFETY: takes and returns a number, and lets no exception out.
    let peak = unsafe { scanside_gpu_peak_bytes(index as i32) };
    u64::try_from(peak).ok().filter(|&peak| peak > 0)
}

/// A tensor of `shape` on `device` with these values in C order. On their way to a GPU they are copied once, where
/// `Tensor::from_slice` first makes a copy beside them.
pub(crate) fn upload<const N: usize>(
    values: &[f32],
    shape: [i64; N],
    device: Device,
) -> Result<Tensor, TchError> {
    if device == Device::Cpu {
        return Tensor::f_from_slice(values)?.f_view_(shape);
    }
    if shape.iter().product::<i64>() != values.len() as i64 {
        return Err(TchError::Shape(format!("{} values do not make {shape:?}", values.len())));
    }
    let mut strides = [1; N];
    for axis in (1..N).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    // SAFETY: the view ends with this statement, before `values` can change or go, and holds as many values as its shape and
    // strides reach. The copy to a device is done when `f_to_device` returns: it waits for copies from memory that is not pinned.
    unsafe { Tensor::f_from_blob(values.as_ptr().cast(), &shape, &strides, Kind::Float, Device::Cpu) }?
        .f_to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_there_is_no_figure() {
        assert_eq!(peak_bytes(Device::Cpu), None);
        // No test puts anything on a GPU, if there is one.
        assert_eq!(peak_bytes(Device::Cuda(0)), None);
    }
}
