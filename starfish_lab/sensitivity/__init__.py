"""Which layers can bear it: each prunable layer alone pruned at a few levels, and what that does to the network's end."""
