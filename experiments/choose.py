"""``python -m experiments.choose``: the program is ``certmask_jax.programs.choose``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.choose import main

if __name__ == "__main__":
    program.leave(main)
