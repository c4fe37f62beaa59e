"""What a scheme costs, measured: models take turns, and ratios say when the machine is too noisy for them."""
