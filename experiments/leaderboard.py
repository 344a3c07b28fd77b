"""``python -m experiments.leaderboard``: the program is ``certmask_jax.programs.leaderboard``."""

from certmask_jax.programs import program

with program.without_collections():
    from certmask_jax.programs.leaderboard import main

if __name__ == "__main__":
    program.leave(main)
