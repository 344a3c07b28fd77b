"""``python -m experiments.certify``: the program is ``certmask_jax.programs.certify``."""

from certmask_jax.programs import program
from certmask_jax.programs.certify import main

if __name__ == "__main__":
    program.leave(main)
