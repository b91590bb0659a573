"""What `bptt explain` shows: the example, its numbers, the words around them, the terminal and the page."""
