"""``python -m experiments.merge``: the program is ``certmask_jax.programs.merge``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.merge import main

if __name__ == "__main__":
    program.leave(main)
