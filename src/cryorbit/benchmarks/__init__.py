"""Tasks, scores and peers: what is measured and against whom."""
