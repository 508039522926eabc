"""The correlator's files, Measurement Sets, and the way from the one to the other."""
