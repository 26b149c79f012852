//! A cluster on one machine, from namespaces.
