"""Ways to heal a pruned network, one file each."""
