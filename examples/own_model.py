"""A text into two vectors and back, on any Hugging Face causal LM: python own_model.py EleutherAI/pythia-160m"""

import sys

from prototokens import decode, fit, load, load_lm, preset, save

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
lm = load_lm(name, dtype="float32")  # and device="cuda", or device_map="auto" for several devices
ids = lm.encode("The first output is the first token.")
result = fit(lm, ids, preset("fast", restarts=2))
print(f"{result.token_accuracy:.0%} of {len(ids)} tokens after {result.steps} steps, ended by: {result.stop_reason}")
path = save("own-model.safetensors", result.tokens, overwrite=True)
print(decode(lm, load(path)).text)
