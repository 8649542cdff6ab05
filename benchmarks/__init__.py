"""Measurements beside other exporters and runtimes: `python -m benchmarks.X`, in the root of the repository.

Each command interleaves what it compares inside one run and prints ratios of that run alone; results/ holds what was
committed, with machine and versions. The peers live in environments of their own: `benchmarks/peers/setup.sh`.
"""
