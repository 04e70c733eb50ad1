"""How important each weight is, one score a file."""
