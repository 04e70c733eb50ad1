"""Bake-off: many healers on one pruned network, under one protocol, in one table."""
