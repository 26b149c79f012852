//! Whether IPVS, which carries Services past the hook for forwarded packets, can be at work.

use std::path::Path;

/// Whether the kernel has it in it now. Its module comes when somebody asks for it, and shows itself in every network namespace.
#[must_use]
pub fn is_there() -> bool {
    Path::new("/proc/thread-self/net/ip_vs").exists()
}
