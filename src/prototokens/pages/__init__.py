"""Pages: the frame, the style and the making of HTML pages that are one file and fetch nothing."""
