"""What lies on disk, whatever it means: databases, files, staging, what a configuration and a
program are called."""
