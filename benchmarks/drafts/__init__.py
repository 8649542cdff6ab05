"""What drafts from the prompt are worth: decode with and without, on answers that copy and on answers that do not.

Random weights of a released shape say nothing, so there the answers are given: `generate` runs as ever, pays for every
step and every choice, and is made to choose the text's next token. So are acceptance, and the steps' cost, real.
"""
