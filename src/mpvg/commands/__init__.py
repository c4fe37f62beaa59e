"""The commands of `mpvg`, but for fit and test, which Lightning's command line makes (mpvg.train)."""
