"""The programs: ``python -m experiments.certify`` and the others."""

import sys

# While Python looks for the module that it is to run, this is what it has in place of its name.
if sys.argv[:1] == ["-m"]:
    from certmask_jax.programs import own_process

    own_process.begin()
