"""The paper's equations, one pure function each."""
