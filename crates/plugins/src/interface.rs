//! Plugins that give a pod an interface.
