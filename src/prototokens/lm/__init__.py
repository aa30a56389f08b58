"""The frozen model, and where its weights come from."""
