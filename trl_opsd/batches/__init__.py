# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tensors of a training step."""
