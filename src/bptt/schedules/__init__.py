"""Plans as data: windows, truncation laws, checkpoint actions. Pure Python, no tensors."""
