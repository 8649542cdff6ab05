"""Speed beside onnxruntime-genai (its builder's artifact in its own loop) and llama.cpp: `python -m benchmarks.speed`.

Each measurement is a process of its own that opens the model, prompts, decodes and ends; a round runs every contender
once, and rounds follow each other, so that what the machine does besides hits all alike. Ratios are taken within one.
"""
