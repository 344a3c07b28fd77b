"""``python -m experiments.audit``: the program is ``certmask_jax.programs.audit``."""

from certmask_jax.programs import own_process

with own_process.without_collections():
    from certmask_jax.programs.audit import main

if __name__ == "__main__":
    own_process.leave(main)
