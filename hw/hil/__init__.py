"""Checks for a real board on the bench; the same ones run on the virtual board."""
