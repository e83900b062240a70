"""Finding the files that a source names, locally or on the hub, and pinning each to one content."""
