"""Solvers: masks and new values of the weights chosen together, layer by layer, from what the layer sees. One a file."""
