"""Fuzzing of all that pysoup reads from a checkpoint: `make fuzz`, or `python -m fuzz` (see `--help`).

A target (``TARGETS``) is one kind of file: valid and hostile seeds, a mutator that knows its structure, and what must
hold of a file that is accepted. ``python -m fuzz.worker`` runs one target: guided by coverage where atheris is
installed, by the kind of outcome where it is not. ``harness`` judges one input.
"""
