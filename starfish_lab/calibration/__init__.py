"""What layers meet of the calibration images, in the dense and in the pruned network: the one home of what pruning and healing both ask."""
