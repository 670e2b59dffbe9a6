# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Demo, small tasks with their rewards, and agents' environments: recipes name them by dotted path."""
