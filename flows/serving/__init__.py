"""`olmo2 serve`: pages of a store, read-only, from its records alone."""
