# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Parts of `trl-opsd new`: rows and columns of a user's data, and the recipe for them."""
