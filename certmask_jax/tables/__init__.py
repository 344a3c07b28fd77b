"""What the model said of every masked image: one record in memory, and the same on the disk."""
