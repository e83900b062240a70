"""Stages that make documents rather than read them (RECIPE C.7)."""
