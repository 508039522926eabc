"""Groups of files: which there are, in which state, and what a run would do with them."""
