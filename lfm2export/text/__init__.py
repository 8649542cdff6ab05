"""Tokens and texts, as the files of a folder say: tokenizer, chat templates, special tokens, text files.

All of it comes from a stranger. JSON and texts are read by `untrusted`; what is a program of its own (a chat template,
the patterns of a tokenizer) runs first in a process with limits on time and memory (:mod:`lfm2export.text.sandbox`).
"""
