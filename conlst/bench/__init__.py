"""The experiments: what is run, what each run leaves behind as one JSON file, and the tables and figures made of these alone."""
