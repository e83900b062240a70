"""The `olmo2` command."""
