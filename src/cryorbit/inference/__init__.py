"""Settings and nouns to nouns; progress is yielded, nothing is written."""
