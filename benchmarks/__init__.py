"""How fast training is, and beside what: `python benchmarks/run.py`. Built on `nets` and `utils`."""
