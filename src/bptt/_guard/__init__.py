"""What a run checks before it relies on it: replays, axes, losses by step, a gradient for every parameter."""
