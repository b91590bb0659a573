"""What a run asks before it relies on something: replays, axes, losses by step, a gradient for every parameter."""
