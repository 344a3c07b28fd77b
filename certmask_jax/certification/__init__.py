"""The long job: a test set through a model onto the disk, and what the table then proves."""
