"""Text out of anything that can `step`: sampling, the loop, chat and tools.

No torch, no transformers, no onnxruntime: the model is handed in.
"""
