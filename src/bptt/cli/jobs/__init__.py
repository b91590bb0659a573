"""What `bptt train` trains and reads: a text, numeric series, or a model of one's own."""
