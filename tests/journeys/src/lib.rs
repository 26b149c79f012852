//! Stories through the whole stack.
