"""The ways from masks to speed, one file each."""
