"""STARFISH Lab: explore what pruning takes from a vision network, and how much healing brings back."""

__version__ = "0.1.0"
