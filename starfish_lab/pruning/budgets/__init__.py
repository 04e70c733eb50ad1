"""How much each layer loses, one rule a file."""
