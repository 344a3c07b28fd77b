"""The parts of ``certmask choose``."""
