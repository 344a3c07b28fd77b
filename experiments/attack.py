"""``python -m experiments.attack``: the program is ``certmask_jax.programs.attack``."""

from certmask_jax.programs import program
from certmask_jax.programs.attack import main

if __name__ == "__main__":
    program.leave(main)
