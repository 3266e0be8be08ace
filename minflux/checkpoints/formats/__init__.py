"""File formats, and how files are read and written safely."""
