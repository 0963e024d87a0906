"""Training for eecompile: distillation, exits, recursion, exit policies, and what early exit can do for a checkpoint.

Needs the extra `train` (torch, transformers and others). It imports eecompile; of eecompile only the command line
names it.
"""
