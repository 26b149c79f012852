//! Namespaces, plugins and tools for tests, independent of the code under test.
