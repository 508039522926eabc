"""`contimg serve`: the API and the pages."""
