"""From scores and labels to metrics, intervals and comparisons."""
