//! The nouns of a cluster: nodes, pods, services, leases, and the snapshot that holds them.
