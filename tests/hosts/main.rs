//! What the mesh must show between hosts, with real programs.
