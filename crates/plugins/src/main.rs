//! The binary fairlead-cni.
fn main() {}
