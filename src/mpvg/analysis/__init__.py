"""What position embeddings do: the papers' measures."""
