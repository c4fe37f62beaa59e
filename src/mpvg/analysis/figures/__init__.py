"""The figures of an analysis: heat maps of tiles, and charts by depth."""
