"""The encoder: a text's proto-tokens in one pass, without a fit.

`config` says how an encoder is built; `trunks` and `network` are its weights. `encoding` turns texts into proto-tokens.
`folder` and `card` keep an encoder in files. `evaluate` scores one beside its controls. `recipes` says how one is
trained, `objective` is the loss through the frozen LM, and `training` does the rest.
"""
