"""``python -m experiments.benchmark``: the program is ``certmask_jax.programs.benchmark``."""

from certmask_jax.programs import own_process

with own_process.without_collections():
    from certmask_jax.programs.benchmark import main

if __name__ == "__main__":
    own_process.leave(main)
