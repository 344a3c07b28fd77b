"""``python -m experiments.audit``: the program is ``certmask_jax.programs.audit``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.audit import main

if __name__ == "__main__":
    program.leave(main)
