"""The encoder: a text's proto-tokens in one pass, without a fit.

`config` says how one is built, `trunks` and `network` are its weights, `encoding` turns texts into proto-tokens,
`files` and `card` keep it. `training` trains it: `recipes` says how, `pool` on what, `run` does the steps, `objective`
passes through the frozen LM, `scores` judges, `checkpoints` and `curve` remember, `processes` work side by side.
"""
