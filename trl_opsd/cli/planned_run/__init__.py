# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Parts of `trl-opsd estimate`: settings of a planned run, and its remedies in the words of a recipe."""
