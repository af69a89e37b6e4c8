//! Hosts as network namespaces, with Hawser and real applications on them.
