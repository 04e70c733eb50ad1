"""Training: one loop for everything that changes weights by gradients (healing, distillation, prune–restore cycles)."""
