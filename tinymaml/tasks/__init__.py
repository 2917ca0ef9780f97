"""Distributions over tasks: what MAML meta-learns from."""
