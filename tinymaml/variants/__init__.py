"""Relatives of MAML, each a file that reads as a difference from `maml.py`."""
