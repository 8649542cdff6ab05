"""The peers: llama.cpp (llama-cpp-python, gguf) and onnxruntime-genai's model builder, in environments of their own.

A module that ends in _worker runs inside a peer's environment, which has neither torch of ours nor onnxruntime of ours;
the others run in the tool's and start it.
"""
