# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Authors of contexts that are written during a run: the model itself, another one, an endpoint or a function."""
