//! The binary fairlead.
fn main() {}
