# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Who writes contexts on the way: the model itself, another one, an endpoint or a function."""
