"""Reading and writing files of weights."""
