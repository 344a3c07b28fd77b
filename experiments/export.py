"""``python -m experiments.export``: the program is ``certmask_jax.programs.export``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.export import main

if __name__ == "__main__":
    program.leave(main)
