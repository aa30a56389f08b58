"""Where proto-tokens lie and what they know: paths between solutions, distances, basins, roles.

Nothing here is needed to fit or to decode; all of it takes proto-tokens that were fitted elsewhere.
"""
