//! The CNI protocol: configuration, results, errors, the plugin process, the chain runner and its cache.
