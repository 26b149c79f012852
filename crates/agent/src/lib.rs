//! The agent of a node: lease, reconcile, status.
