"""What `bptt compare` is made of: options, settings, runs, gradients, and what is told of them."""
