"""Views: pages that show what a fit, a decode, a path, an archive or an encoder does, token by token.

`scenes` is what a page can show: rows of coloured tokens that change from frame to frame. One module for each kind of
file makes such scenes: `fits`, `races` (a decode beside greedy generation), `ways` (between two texts), `archives` and
`encoders`. `page` writes them into one HTML file.
"""
