"""VDIs as image files in a directory."""
