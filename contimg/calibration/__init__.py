"""Gains: solve, look at, keep, choose, apply."""
