"""Training an encoder through the frozen model.

`loop` trains and keeps the folder, `trainer` takes the steps, `texts` supplies the texts. `checkpoint` and `curve` are
the files of a training, `distributed` its processes.
"""
