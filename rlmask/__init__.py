"""Reinforcement learning where not every action is valid in every state."""

__version__ = "0.1.0"
