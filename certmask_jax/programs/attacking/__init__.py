"""The parts of ``certmask attack`` and ``certmask audit``."""
