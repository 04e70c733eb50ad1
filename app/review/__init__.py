"""Reviewing runs: what differs between them, where they come from, what was decided, and the evidence to take away."""
