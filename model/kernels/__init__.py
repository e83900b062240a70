"""C++ code for CPUs: what decodes, and what training does between its matmuls."""
