"""``python -m certmask_jax``: the same as the installed command, see ``programs.commands``."""

from certmask_jax.programs.commands import main

if __name__ == "__main__":
    main()
