"""How fast an artifact is on this machine's CPU: load, prefill, decode, memory, bytes read, share of the bandwidth.

`run.bench_artifact` measures every file in a process of its own, so that memory is told apart; `measure.Engine` is what
runs there. Nothing here prints. A figure that was not measured is None, never 0.
"""
