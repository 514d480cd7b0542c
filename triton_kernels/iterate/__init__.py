"""Running a plan: normalization, the iteration, and the products over which it is written."""
