"""Decisions that take time as an argument and touch no socket: what a backend's answers mean."""
