"""Benchmark families: one file per family, each from a config to items and from answers to scores."""
