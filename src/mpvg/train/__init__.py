"""Training: the recipe that `mpvg compare` and `mpvg fit` share, and what runs it on Lightning."""
