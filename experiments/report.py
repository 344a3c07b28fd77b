"""``python -m experiments.report``: the program is ``certmask_jax.programs.report``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.report import main

if __name__ == "__main__":
    program.leave(main)
