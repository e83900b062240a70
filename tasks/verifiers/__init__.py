"""Verifiers: text to verdict (RECIPE H.4), shared by rlvr, preferences and evaluation."""
