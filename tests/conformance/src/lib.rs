//! The behaviours of the CNI plugins, ours and the reference's.
