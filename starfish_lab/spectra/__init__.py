"""Eigenvalues of weight matrices and the Marchenko–Pastur bulk fitted to them."""
