"""``python -m experiments.merge``: the program is ``certmask_jax.programs.merge``."""

from certmask_jax.programs import program
from certmask_jax.programs.merge import main

if __name__ == "__main__":
    program.leave(main)
