"""Tables of papers by one command each: ``python -m experiments.papers.patchcleanser table2``.

A table is a list of rows (``recipes``), a paper a module with its tables, and one runner makes the
numbers (``runner``). The papers' own figures stand beside those of the data and weights at hand.
"""
