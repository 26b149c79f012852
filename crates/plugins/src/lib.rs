//! fairlead-cni: every CNI plugin in one static binary.
