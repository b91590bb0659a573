"""What looks at a model instead of training it: `bptt.compare`, `bptt.diagnose` and `bptt.plan`."""
