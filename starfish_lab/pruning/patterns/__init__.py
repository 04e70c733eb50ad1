"""Which shapes the zeros may take, one pattern a file."""
