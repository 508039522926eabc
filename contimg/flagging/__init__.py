"""What is not data, and what is not the sky."""
