#include <c10/core/CachingDeviceAllocator.h>

// The most bytes that tensors on a CUDA device have held at one time; -1 where libtorch has no allocator for it.
extern "C" std::int64_t scanside_gpu_peak_bytes(std::int32_t device) noexcept {
  try {
    auto* found = c10::GetAllocator(c10::DeviceType::CUDA);
    auto* allocator = dynamic_cast<c10::DeviceAllocator*>(found);
    if (allocator == nullptr || !allocator->initialized()) {
      return -1;
    }
    // The first of the statistics is over blocks of all sizes.
    return allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device)).allocated_bytes[0].peak;
  } catch (...) {
    return -1;
  }
}
