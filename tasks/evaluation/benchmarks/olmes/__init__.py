"""OLMES: its tasks, their shots, and the benchmark that asks them (RECIPE I)."""
