"""``python -m experiments.benchmark``: the program is ``certmask_jax.programs.benchmark``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.benchmark import main

if __name__ == "__main__":
    program.leave(main)
