"""Images in memory: sources, and the random crops that training sees."""
