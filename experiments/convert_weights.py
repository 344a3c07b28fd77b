"""``python -m experiments.convert_weights``: see ``certmask_jax.programs.convert_weights``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.convert_weights import main

if __name__ == "__main__":
    program.leave(main)
