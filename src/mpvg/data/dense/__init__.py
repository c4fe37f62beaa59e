"""Sets for dense tasks: objects in COCO's format, and images with masks that name the class of each pixel."""
