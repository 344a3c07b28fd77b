"""Who may attack where, and what hides it: exact integer work in NumPy, done once, without JAX."""
