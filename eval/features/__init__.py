"""Feature extractors, their weights, and features of many images."""
