"""What came out: the index, where it is from, what may be published, what may be deleted."""
