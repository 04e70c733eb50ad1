"""From masks to real speed."""
