"""The network that pruning starts from: dense, a file, or the end of prune–restore cycles. One a file."""
