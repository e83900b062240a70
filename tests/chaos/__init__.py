"""Accidents: killed processes, interrupted runs, full and broken stores."""
