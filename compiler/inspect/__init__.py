"""Reports: pure functions of the Graph."""
