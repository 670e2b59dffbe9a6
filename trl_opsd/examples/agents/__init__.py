# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Environments with state and tools with strict arguments, for recipes and tests of hints against tool errors."""
