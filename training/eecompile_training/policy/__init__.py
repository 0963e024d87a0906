"""`train policy`: GRPO on the exit gates of a compiled bundle, with what its passes cost where it runs."""
