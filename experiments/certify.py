"""``python -m experiments.certify``: the program is ``certmask_jax.programs.certify``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.certify import main

if __name__ == "__main__":
    program.leave(main)
