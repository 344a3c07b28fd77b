"""``python -m experiments.convert_weights``: see ``certmask_jax.programs.convert_weights``."""

from certmask_jax.programs import own_process

with own_process.without_collections():
    from certmask_jax.programs.convert_weights import main

if __name__ == "__main__":
    own_process.leave(main)
