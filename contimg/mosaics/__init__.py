"""A fixed division of the sky, and what days and years of images show there."""
