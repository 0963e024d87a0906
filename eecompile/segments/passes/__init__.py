"""Rewrites of a written graph, one a file. Each takes a graph and returns whether it changed anything."""
