//! What loading has freed.

/// Gives freed memory back to the system: after a task is loaded, glibc would keep more than half of its backbone's size at hand.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc offers it to C alone")]
pub(super) fn give_back() {
    // SAFETY: it may be called at any time; what is in use stays where it is.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators keep little.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
