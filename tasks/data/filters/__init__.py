"""The text algorithms behind the data stages: pure functions, one file per rule, each with its config."""
