"""Where work runs: processes, Ray shards and actors, training groups."""
