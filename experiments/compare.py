"""``python -m experiments.compare``: the program is ``certmask_jax.programs.compare``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.compare import main

if __name__ == "__main__":
    program.leave(main)
