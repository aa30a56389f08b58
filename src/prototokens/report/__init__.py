"""The report: the paper's tables and figures from the rows of a study's store, beside the published numbers.

Nothing here loads torch. Rows are plain dicts, so a page can be made where no model runs.

    rows ─conditions.series→ rows that may be averaged ─summary→ numbers ─tables, figures→ exhibits ─page→ HTML
"""
