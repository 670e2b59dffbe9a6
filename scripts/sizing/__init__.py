# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Memory and time of a training run by formulas. Nothing here is measured, but for `checks`, which compares the formulas
with small models on this machine. Only `checks` imports torch.
"""
