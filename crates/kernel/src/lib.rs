//! The only door to Linux: netlink, nf_tables, namespaces, sysctls.
