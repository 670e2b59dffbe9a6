# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Small tasks with their rewards, agents' environments and a small model: recipes name them by dotted path."""
