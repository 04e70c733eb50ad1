"""The model families the lab knows, one file each."""
