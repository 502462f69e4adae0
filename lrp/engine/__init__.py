"""Running a model's own forward so that its backward carries relevance."""
