"""What the tests share: cases, oracles, and the grammar they are written in."""
