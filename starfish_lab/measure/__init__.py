"""What a network is worth and what it costs: accuracy, drift, MACs, latency, and the hardware they were measured on."""
