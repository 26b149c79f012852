//! One node's network as a value: links, addresses, routes, neighbours, FDB, nftables, sysctls; their diff and their text.
