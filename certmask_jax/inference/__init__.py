"""A model on masked images: the masked forward pass, early exit, and the guarded classifier."""
