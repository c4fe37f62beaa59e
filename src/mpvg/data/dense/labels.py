"""What class maps have in common."""

IGNORED = 255  # the label of pixels that are neither learned nor measured
