"""Documents too close to evaluation texts, or to one another."""
