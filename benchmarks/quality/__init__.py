"""What 4 and 8 bits cost: quantizers of this package, of onnxruntime, onnxruntime-genai and llama.cpp on one text.

Every file is compared with transformers in fp32 on the same chunks of held-out text, position by position, so that
differences between two files are paired by chunk. `python -m benchmarks.quality --help` says how.
"""
