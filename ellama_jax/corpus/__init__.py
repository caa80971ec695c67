"""Raw records to documents: readers, listings, reviews, pages, splits, duplicates, leaks."""
