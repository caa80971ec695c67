"""What a person looks at: pages, terminals, descriptions of what lies on disk."""
