"""Between models: merging methods, averages, the sweep from base to adapted."""
