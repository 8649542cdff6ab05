"""Goldens of the shipped model: what its five graphs are, and what they and PyTorch compute on a few prompts.

golden/reference.json holds PyTorch's greedy answers and its highest logits at every step; golden/<dtype>.json the
structure of that graph and its highest logits on the same tokens. `python -m golden check` compares, `python -m golden
refresh` writes them anew; read the difference in the commit before it is pushed.
"""
