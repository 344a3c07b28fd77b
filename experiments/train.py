"""``python -m experiments.train``: the program is ``certmask_jax.programs.train``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.train import main

if __name__ == "__main__":
    program.leave(main)
