"""Two leaf nodes: 0003_channel and 0003_note both follow 0002."""
