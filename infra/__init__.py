"""Plumbing: stores, artifacts, stages, workspaces and everything that touches Prefect, Ray or a file system."""
