"""Sweeps: one recipe over sparsities, patterns, scores, budgets, healers and seeds, as one job of the queue."""
