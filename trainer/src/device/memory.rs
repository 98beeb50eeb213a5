//! How much memory of a GPU libtorch has taken; tch does not bind its allocator.
// The one place in this crate that calls C: `memory.cpp`, built by build.rs.
#![allow(unsafe_code, reason = "libtorch's allocator can only be asked in C++")]

use tch::Device;

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
