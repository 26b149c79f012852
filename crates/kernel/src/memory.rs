//! Memory that the allocator keeps though nothing is in it.
//!
//! Read [`give_back`]. Whoever reads a large kernel for a moment holds thousands of objects; what was between them and lasts
//! keeps the allocator from giving their pages back by itself.
#![allow(unsafe_code)]

/// Gives back to the kernel what pages of the heap nothing is in. Costs a walk over what is free, and a fault for each page
/// that is needed again.
pub fn give_back() {
    // Others do so by themselves, or cannot.
    #[cfg(target_env = "gnu")]
    // SAFETY: touches no memory that is in use, and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
