"""The parts of bench_cuda.py: where it runs, how it is timed, what is checked, and one module for each kind of work."""
