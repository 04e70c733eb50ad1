"""The latency lab: how fast every execution of a network is on this machine, compared like with like."""
