//! Node to node: which links, routes, neighbours and masquerade join this node with the others.
