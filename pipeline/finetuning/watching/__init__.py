"""What is seen of a run of fine-tuning: metrics.jsonl, a progress line, Ray metrics, experiment trackers."""
