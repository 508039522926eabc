"""Pictures for people; each function takes values and gives a figure."""
