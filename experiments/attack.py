"""``python -m experiments.attack``: the program is ``certmask_jax.programs.attack``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.attack import main

if __name__ == "__main__":
    program.leave(main)
