"""The arithmetic behind the guided lessons: random matrices, small enough for milliseconds. NumPy and SciPy only."""
